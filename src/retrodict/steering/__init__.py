"""Steering: goals as potentials on the reverse path, with the weights that make the answer right."""

from retrodict.steering.classifier import Classifier
from retrodict.steering.covariances import Covariance
from retrodict.steering.measurement import Measurement
from retrodict.steering.methods import steer
from retrodict.steering.minority import fit_minority, minority_labels, minority_reward, minority_score
from retrodict.steering.potential import Node, Potential, Tilt
from retrodict.steering.readout import Readout, fit_classifier, fit_value
from retrodict.steering.reward import Reward
from retrodict.steering.steered import Steered

__all__ = [
    "Classifier",
    "Covariance",
    "Measurement",
    "Node",
    "Potential",
    "Readout",
    "Reward",
    "Steered",
    "Tilt",
    "fit_classifier",
    "fit_minority",
    "fit_value",
    "minority_labels",
    "minority_reward",
    "minority_score",
    "steer",
]
