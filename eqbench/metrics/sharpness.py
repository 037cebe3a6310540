"""Metrics of the sharpness probe."""

from eqbench.metrics.base import Metric

_CAVEAT = "A descriptor: it does not correlate well with generalisation (Andriushchenko 2023)"
_WHERE = "at the gauge-balanced copy, of training images' cross-entropy; without labels, of the classes that the network predicts"
_NULL = "the same of a random perturbation of that size, mean of both signs"
_ASCENT = "APGD, up to `steps` gradients"
_SIZES = {"": "", "_half": ", half the radius", "_double": ", twice the radius"}

# name: title, symbol, what is perturbed, formula, citation, null, cost
_KINDS = {
    "sam_sharpness": (
        "SAM sharpness",
        "S₂",
        f"The largest rise of the loss that APGD finds for weights moved by at most ρ = sam_radius, {_WHERE}. {_CAVEAT}; the interval is over images, at the perturbation found.",
        "S₂ = max L(θ + d) − L(θ) over |d|₂ ≤ ρ",
        "Foret et al. 2021, ICLR; the ascent: Croce & Hein 2020, ICML",
        _NULL,
        _ASCENT,
    ),
    "adaptive_sharpness": (
        "Adaptive sharpness",
        "A₂",
        f"The largest rise of the loss that APGD finds for relative changes of the weights of at most ρ = adaptive_radius, {_WHERE}. {_CAVEAT}; the interval is over images, at the perturbation found.",
        "A₂ = max L(θ + d) − L(θ) over |d / |θ||₂ ≤ ρ",
        "Kwon et al. 2021, ICML; Andriushchenko et al. 2023, ICML",
        _NULL,
        _ASCENT,
    ),
    "adaptive_max_sharpness": (
        "Adaptive sharpness, every weight",
        "A_{∞}",
        f"The largest rise of the loss that APGD finds where each weight may change by the share ρ = adaptive_max_radius of itself, {_WHERE}. {_CAVEAT}; the interval is over images, at the perturbation found.",
        "A_{∞} = max L(θ + d) − L(θ) over |dᵢ| ≤ ρ |θᵢ|",
        "Andriushchenko et al. 2023, ICML",
        _NULL,
        _ASCENT,
    ),
    "average_sharpness": (
        "Average sharpness",
        "A",
        f"The mean rise of the loss under independent relative noise of the weights of standard deviation ρ = average_radius, {_WHERE}. {_CAVEAT}; the interval is over random directions (Student's t), each with both signs.",
        "A = E_z L(θ + ρ |θ| z) − L(θ), z normal",
        "Andriushchenko et al. 2023, ICML",
        "",
        "2 forwards a direction",
    ),
}

_RISES = tuple(
    Metric(
        name + suffix,
        "sharpness",
        title + size,
        symbol + {"": "", "_half": "(ρ/2)", "_double": "(2ρ)"}[suffix],
        "nat",
        definition,
        formula,
        citation,
        None,
        null=null,
        cost=cost,
        headline=suffix == "" and name in ("adaptive_sharpness", "average_sharpness"),
    )
    for name, (title, symbol, definition, formula, citation, null, cost) in _KINDS.items()
    for suffix, size in _SIZES.items()
)

_GAUGES = tuple(
    Metric(
        name.replace("sharpness", "gauge_ratio"),
        "sharpness",
        f"{title}: before / after balancing",
        f"{symbol}ᵍ",
        "",
        "The same at the weights as they are, over that at the balanced copy, which is the same function. What is not 1 is owed to the scales that training happened to leave neighbouring layers at.",
        f"{symbol}ᵍ = {symbol}(θ) / {symbol}(balanced θ)",
        "eqbench; after Dinh et al. 2017, ICML",
        None,
        null="1: weights that are balanced",
        cost=cost,
    )
    for name, (title, symbol, *_, cost) in _KINDS.items()
)

_KINK = "Curvature at a finite step over that of the Hessian, summed over random relative directions v, |v| = |θ|; 1 for smooth networks, above it where ReLU kinks, which derivatives do not see, hold part of the curvature. The interval is over directions (Student's t); in float64."
_KINKS = tuple(
    Metric(
        name,
        "sharpness",
        f"Kink ratio at {step}",
        f"κ({step})",
        "",
        _KINK,
        f"κ = Σ_v [L(θ + εv) + L(θ − εv) − 2L(θ)] / ε² / Σ_v vᵀHv, ε = {step}",
        "eqbench",
        None,
        floor="1: a smooth network, up to ε²",
        cost="1 Hessian product and 2 forwards a direction, of kink_images images",
        headline=name == "kink_ratio",
    )
    for name, step in (("kink_ratio", "10⁻²"), ("kink_ratio_middle", "10⁻³"), ("kink_ratio_small", "10⁻⁴"))
)

SHARPNESS = (*_RISES, *_GAUGES, *_KINKS)
