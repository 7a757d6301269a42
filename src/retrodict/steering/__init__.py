"""Steering: goals as potentials on the reverse path, with the weights that make the answer right."""

from retrodict.steering.covariances import Covariance, covariances
from retrodict.steering.measurement import Measurement
from retrodict.steering.methods import methods, steer
from retrodict.steering.potential import Node, Potential, Tilt
from retrodict.steering.steered import Steered

__all__ = ["Covariance", "Measurement", "Node", "Potential", "Steered", "Tilt", "covariances", "methods", "steer"]
