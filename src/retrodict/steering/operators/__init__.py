"""Measurement operators: what was seen of a state, ``y = A(x) + noise``.

Anything is an operator: one of ours, a matrix, a callable, or a physics of `deepinv`; `as_operator` reads it, and
``A | B`` does A first, then B.  As ``rd.operators`` it is at the front door.

=====================================  ==============================================================
what                                   made by
=====================================  ==============================================================
parts of a state                       `inpaint`, `half`, `box`, `random_mask`
blurs                                  `gaussian_blur`, `motion_blur`, `convolve`
smaller images                         `downsample`, `super_resolution`
mixtures                               `grayscale`, `colour`, `random_projections`, `matrix`
not linear                             `phase_retrieval`, `nonlinear_blur`, `clip`, `quantise`
glue                                   `identity`, `reshape`, `affine`, `function`
=====================================  ==============================================================
"""

from retrodict.steering.operators.convolutions import Convolution, convolve, gaussian_blur, motion_blur
from retrodict.steering.operators.masks import Mask, box, half, inpaint, random_mask
from retrodict.steering.operators.mixing import colour, function, grayscale, identity, matrix, random_projections
from retrodict.steering.operators.nonlinear import affine, clip, nonlinear_blur, phase_retrieval
from retrodict.steering.operators.operator import Adapted, Composed, Linear, Matrix, NonLinear, Operator, as_operator
from retrodict.steering.operators.quantise import quantise
from retrodict.steering.operators.singular import Singular
from retrodict.steering.operators.sizes import downsample, reshape, super_resolution

__all__ = [
    "Adapted",
    "Composed",
    "Convolution",
    "Linear",
    "Mask",
    "Matrix",
    "NonLinear",
    "Operator",
    "Singular",
    "affine",
    "as_operator",
    "box",
    "clip",
    "colour",
    "convolve",
    "downsample",
    "function",
    "gaussian_blur",
    "grayscale",
    "half",
    "identity",
    "inpaint",
    "matrix",
    "motion_blur",
    "nonlinear_blur",
    "phase_retrieval",
    "quantise",
    "random_mask",
    "random_projections",
    "reshape",
    "super_resolution",
]
