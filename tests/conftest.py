"""The tolerance table, and nothing else that all rooms share. Indices are compared exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

TOLERANCES = {
    "fp32": {},  # torch.testing's own defaults
    "ort": {"rtol": 1e-3, "atol": 1e-4},
    "bf16": {"rtol": 1e-2, "atol": 1e-2},
}


@pytest.fixture
def close() -> Callable[..., None]:
    """``close(actual, expected, "fp32")``: equal within the table; says how far off otherwise."""

    def check(actual: Tensor, expected: Tensor, kind: str = "fp32") -> None:
        actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)

        def report(text: str) -> str:
            gap = (actual.double() - expected.double()).abs()
            return f"{text}\n{kind}: max {gap.max():.3g}, mean {gap.mean():.3g}"

        torch.testing.assert_close(actual, expected, msg=report, **TOLERANCES[kind])

    return check
