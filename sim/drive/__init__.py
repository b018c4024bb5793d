"""Closed-loop driving on nuScenes roots, real or made here."""
