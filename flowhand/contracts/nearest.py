"""Equal values of angles and rotations: which of them is near another, and how far two actions are apart."""

from __future__ import annotations

import math

import numpy as np

from .features import ROTATIONS, Feature

TURN = 2 * math.pi


def nearest(action: np.ndarray, reference: np.ndarray, feature: Feature) -> np.ndarray:
    """Actions (..., A) as the equal values that are nearest to the reference (..., A).

    An angle that wraps moves by whole turns, the vector of a rotation by whole turns about its axis, and a quaternion
    changes its sign. All else stays as it is, and so does the dtype.
    """
    if not (feature.wraps or feature.rotations):
        return action
    found = action.astype(np.float64)
    for place in feature.wraps or ():
        found[..., place] += TURN * np.round((reference[..., place] - found[..., place]) / TURN)
    for first, form in feature.rotations or ():
        places = slice(first, first + ROTATIONS[form])
        own, other = found[..., places], np.asarray(reference[..., places], np.float64)
        if form == "axis_angle":
            length = np.linalg.norm(own, axis=-1, keepdims=True)
            axis = own / np.maximum(length, 1e-12)
            turns = np.round(((axis * other).sum(-1, keepdims=True) - length) / TURN)
            found[..., places] = own + TURN * turns * axis
        elif form.startswith("quaternion"):
            found[..., places] = np.where((own * other).sum(-1, keepdims=True) < 0, -own, own)
    return found.astype(action.dtype)


def difference(action: np.ndarray, expected: np.ndarray, feature: Feature) -> np.ndarray:
    """Actions (..., A) less the expected ones, in float64, whichever of equal values either has."""
    return nearest(action.astype(np.float64), expected, feature) - expected


def average(actions: np.ndarray, weight: np.ndarray, feature: Feature | None) -> np.ndarray:
    """The weighted mean (A,) of actions (K, A); of angles and rotations, that of the values nearest to the last one's.

    Quaternions have length 1 again (Markley 2007 to first order: they are near each other).
    """
    if feature is None or not (feature.wraps or feature.rotations):
        return np.average(actions, axis=0, weights=weight)
    mean = np.average(nearest(actions, actions[-1], feature).astype(np.float64), axis=0, weights=weight)
    for first, form in feature.rotations or ():
        if form.startswith("quaternion"):
            places = slice(first, first + ROTATIONS[form])
            mean[places] /= max(float(np.linalg.norm(mean[places])), 1e-12)
    return mean
