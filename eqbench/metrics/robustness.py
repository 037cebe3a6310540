"""Metrics of the robustness probe."""

from eqbench.metrics.base import Metric

_PROBE = "robustness"
_USUAL = "the most frequent class alone"
_SHIFT = (
    "Shifted along both axes at once by `shift` of the side, to each of the four corners, and mirrored at the border."
)
_TURN = "Turned by `rotation` degrees and by half of that, both ways, and mirrored at the border."
_PGD = "Share of images classed rightly as they are and under projected gradient ascent on the cross-entropy: `pgd_steps` steps of 2.5 ε / `pgd_steps` from the image itself, within |x' − x| ≤ ε"
_BOUND = "and [0, 1]. A bound from above: a better attack may find more."

# key: title, symbol, what is done, citation, cost
_KINDS = {
    "shift": ("shifted", "shift", _SHIFT, "eqbench; cf. Azulay & Weiss 2019, JMLR", "4 forwards"),
    "rotation": ("rotated", "rot", _TURN, "eqbench; cf. Engstrom et al. 2019, ICML", "4 forwards"),
    **{
        f"noise_{size}": (
            f"under {size} noise",
            f"noise,{i}",
            f"Gaussian noise of standard deviation `noise[{i - 1}]` is added to each channel of each pixel, and what leaves [0, 1] is cut off.",
            "Hendrycks & Dietterich 2019, ICLR",
            "1 forward",
        )
        for i, size in enumerate(("weak", "medium", "strong"), 1)
    },
    **{
        f"pgd_{size}": (
            f"under {size} attack",
            f"PGD,{i}",
            f"{_PGD} = `pgd_eps[{i - 1}]` / 255 {_BOUND}",
            "Madry et al. 2018, ICLR; by adversarial-robustness-toolbox (Nicolae et al. 2018, arXiv:1807.01069)",
            "`pgd_steps` gradients an image that is classed rightly",
        )
        for i, size in enumerate(("weak", "strong"), 1)
    },
}


def _metrics(key: str) -> tuple[Metric, Metric]:
    title, symbol, meaning, citation, cost = _KINDS[key]
    attack = key.startswith("pgd")
    formula = "[argmax f(x) = y and argmax f(x') = y]" if attack else "[argmax f(cx) = y]"
    return (
        Metric(
            f"{key}_accuracy",
            _PROBE,
            f"Accuracy, {title}",
            f"acc_{{{symbol}}}",
            "",
            meaning if attack else f"Share of images classed rightly. {meaning}",
            f"acc = mean{'ₓ' if attack else '_{x, c}'} {formula}",
            citation,
            True,
            null=_USUAL,
            cost=cost,
            compared=key in ("shift", "rotation", "pgd_weak"),
            headline=key == "pgd_weak",
        ),
        Metric(
            f"{key}_drop",
            _PROBE,
            f"Accuracy lost, {title}",
            f"Δacc_{{{symbol}}}",
            "",
            f"The accuracy on the images as they are, minus that {title}.",
            f"Δacc = acc_0 − acc_{{{symbol}}}",
            citation,
            False,
            null="0: nothing lost",
            cost=cost,
        ),
    )


ROBUSTNESS = (
    Metric(
        "corruption_accuracy",
        _PROBE,
        "Mean accuracy under corruption",
        "acc_c",
        "",
        "The mean of the accuracies shifted, rotated and under noise (itself the mean of its three strengths); no attack is in it.",
        "acc_c = (acc_shift + acc_rot + mean_i acc_{noise,i}) / 3",
        "after Hendrycks & Dietterich 2019, ICLR",
        True,
        null=_USUAL,
        cost="those of its parts",
        compared=True,
        headline=True,
    ),
    Metric(
        "corruption_drop",
        _PROBE,
        "Mean accuracy lost to corruption",
        "Δacc_c",
        "",
        "The mean of the accuracies lost shifted, rotated and under noise.",
        "Δacc_c = (Δacc_shift + Δacc_rot + mean_i Δacc_{noise,i}) / 3",
        "after Hendrycks & Dietterich 2019, ICLR",
        False,
        null="0: nothing lost",
        cost="those of its parts",
        headline=True,
    ),
    Metric(
        "clean_accuracy",
        _PROBE,
        "Accuracy, untouched",
        "acc_0",
        "",
        "Share of the probe's images classed rightly as they are: what all the others are compared with.",
        "acc_0 = meanₓ [argmax f(x) = y]",
        "the usual definition",
        True,
        null=_USUAL,
        cost="1 forward",
    ),
    *(metric for key in _KINDS for metric in _metrics(key)),
)
