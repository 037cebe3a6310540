"""Metrics of the slices probe."""

from eqbench.metrics.base import Metric

_LOSS = "of training images' cross-entropy; without labels, of the classes that the network predicts"
_BARRIER = "B = max_t L(t) − ((1 − t) L(0) + t L(1)), L(t) at (1 − t)θ + tθ′"
_NULL = "the same where the hidden channels of the other network are put in random order"
_COST = "2 forwards a point of the path"
_RESET = "Batch-norm statistics are taken anew at every point; the interval is over images."
_MATCHED = "hidden channels of the other network put in the order that is most like this one's"

_LINES = (
    Metric(
        "slice_rise",
        "slices",
        "Rise along random slices",
        "ΔL",
        "nat",
        f"How far the loss rises at the ends of random slices whose every filter has the norm of the network's own, {_LOSS}. Biases and norms stay, and the scales between neighbouring layers count; the interval is over directions (Student's t).",
        "ΔL = mean_d [L(θ + s d) + L(θ − s d)] / 2 − L(θ), |d_f| = |θ_f| for each filter f, s = span",
        "Li et al. 2018, NeurIPS",
        None,
        cost="points forwards a direction",
        headline=True,
    ),
    Metric(
        "eigen_slice_ratio",
        "slices",
        "Bend along the top eigenvector",
        "b₁/λ₁",
        "",
        "The bend of the loss along the first eigenvector of its Hessian, by a small finite step in float64, over the eigenvalue. It is 1 for smooth networks, up to the Ritz residual that the interval shows; kinks add to it.",
        "b₁/λ₁ = [L(θ + εq₁) + L(θ − εq₁) − 2L(θ)] / (ε² λ₁)",
        "eqbench",
        None,
        floor="1: a smooth network",
        cost="shared Lanczos run, up to max_products Hessian products",
    ),
    Metric(
        "orbit_rise",
        "slices",
        "Rise along orbits",
        "ΔL_O",
        "nat",
        f"The largest change of the loss along finite rescalings and other symmetries of the weights, which leave the function alone, {_LOSS}. Anything beyond rounding is an error of the arithmetic or of the symmetry.",
        "ΔL_O = max_A max_t |L(exp(tA) θ) − L(θ)|",
        "eqbench",
        None,
        floor="0: an exact symmetry in exact arithmetic",
        null="the same along random straight lines of the same lengths, on the same weights",
        cost="points forwards an orbit",
        headline=True,
    ),
)

_WAYS = {
    "init": (
        "Barrier to the initial weights",
        "B₀",
        "the same seed's initial weights",
        "where it is the other barrier's equal, training has kept the order",
    ),
    "seed": (
        "Barrier to another seed",
        "B",
        "the next seed's weights of the same state",
        "near 0, both seeds have found one basin up to the order of channels",
    ),
}
_BARRIERS = tuple(
    Metric(
        f"barrier_{kind}{suffix}",
        "slices",
        title + mark,
        symbol + sign,
        "nat",
        f"{definition}. {_RESET}",
        _BARRIER,
        citation,
        None,
        null=_NULL,
        cost=_COST,
        headline=(kind, suffix) == ("seed", "_matched"),
    )
    for kind, (title, symbol, end, verdict) in _WAYS.items()
    for suffix, mark, sign, definition, citation in (
        (
            "",
            "",
            "",
            f"How far the loss rises above its chord on the straight way to {end}, {_LOSS}",
            "Frankle et al. 2020, ICML; statistics: Jordan et al. 2023, ICLR (REPAIR)",
        ),
        (
            "_matched",
            ", matched",
            "ᵖ",
            f"The same, {_MATCHED}: {verdict}",
            "Ainsworth et al. 2023, ICLR (weight matching)",
        ),
    )
)

SLICES = (*_LINES, *_BARRIERS)
