"""Episodes as films on a page."""

import base64
import re
from io import BytesIO

import numpy as np
from PIL import Image
from vla_prune_sim import film, rollout

from tests.sim.test_rollout import config  # noqa: F401 a fixture


def test_a_film_shows_every_call_with_dropped_patches_dim(config):  # noqa: F811
    by_key = {episode.key: episode for episode in rollout.episodes(config)}
    dense, pruned = (
        film.film(config, config.world, by_key[key])
        for key in ("tiny:0:5:dense:1", "tiny:0:5:dual_level:0.25")
    )
    assert len(dense) == len(pruned) == 4
    side = 16 * film.SCALE
    assert dense[0].shape == (side, side + 6, 3)
    # Where a patch is dropped the picture is grey.
    grey = (np.ptp(pruned[0][:, :side].astype(int), axis=-1) == 0).mean()
    assert 0.7 < grey < 0.8
    assert (np.ptp(dense[0][:, :side].astype(int), axis=-1) == 0).mean() < 0.1


def test_a_page_needs_no_other_file(tmp_path):
    frames = [np.full((8, 12, 3), shade, np.uint8) for shade in (0, 120, 240)]
    rows = [{"recipe": "dense", "score": 0.5}, {"recipe": "<b>", "tokens": 3}]
    text = film.page(tmp_path / "r.html", "a & b", rows, [("one", frames)]).read_text()
    assert "a &amp; b" in text
    assert "<td>&lt;b&gt;</td><td>-</td><td>3</td>" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    data = re.search(r"base64,([\w+/=]+)", text).group(1)
    picture = Image.open(BytesIO(base64.b64decode(data)))
    assert (picture.n_frames, picture.size) == (3, (12, 8))
