"""Metrics of the consistency probe."""

from eqbench.metrics.base import Metric

_OVER = "over a finite group's orbit, a Lie group's sweep, or, for translations, two crops at random offsets (224 px from 256 px, other sizes in proportion)"
_COST = "|G| forwards an image, or one for each value of the sweep, shared with the orbit and sweep probes; 2 for translations"
_CHANCE = "independent predictions with the same class frequencies"

CONSISTENCY = (
    Metric(
        "consistency_same",
        "consistency",
        "Same prediction",
        "P",
        "",
        f"How often the predicted class stays what it was, {_OVER}. For translations this is the published consistency of Zhang, where the data keep the whole image (crop_pct 1).",
        "P = mean_{x, g≠e} [argmax f(gx) = argmax f(x)]",
        "Zhang 2019, ICML; Gerken & Kessel 2024, ICML (orbit same prediction, there with the identity)",
        True,
        null=_CHANCE,
        cost=_COST,
        compared=True,
        headline=True,
    ),
    Metric(
        "consistency_kappa",
        "consistency",
        "Same prediction beyond chance",
        "κ_P",
        "",
        "Cohen's kappa of the predictions before and after: 0 is chance, 1 is always the same. A network that gives one class to all images is always consistent, and has none.",
        "κ_P = (P − P_chance) / (1 − P_chance), P_chance = Σ_c P(c) P_g(c)",
        "Cohen 1960, Educ. Psychol. Meas.",
        True,
        null="0: chance",
        cost=_COST,
    ),
    Metric(
        "consistency_correct",
        "consistency",
        "Same prediction where right",
        "P_✓",
        "",
        "Same prediction among the images that are classed rightly untransformed (of two crops: the first). Consistency grows with accuracy, this does so less.",
        "P_✓ = P[argmax f(gx) = argmax f(x) | argmax f(x) = y]",
        "eqbench; cf. Zhang 2019, ICML",
        True,
        null=_CHANCE + ", among the same images",
        cost=_COST,
    ),
    Metric(
        "consistency_js",
        "consistency",
        "Divergence of the predictions",
        "JS",
        "bit",
        "How far the predicted distribution moves, whether or not its class does: 0 is not at all, 1 is to a distribution that shares no class with it.",
        "JS = mean_{x, g≠e} H((p(x) + p(gx))/2) − (H(p(x)) + H(p(gx)))/2",
        "Lin 1991, IEEE Trans. Inf. Theory",
        False,
        null="shuffled pairs: p(gx) against p of another image",
        cost=_COST,
    ),
    Metric(
        "ensemble_same_prediction",
        "consistency",
        "Same prediction of the ensemble",
        "P_ens",
        "",
        "Same prediction of the mean logits of all seeds: more than that of its members where the ensemble is more symmetric than they are. A number of the seeds together; a cell has it only to say why there is none.",
        "P_ens = mean_{x, g≠e} [argmax Σ_s f_s(gx) = argmax Σ_s f_s(x)]",
        "Gerken & Kessel 2024, ICML",
        True,
        null=_CHANCE,
        cost="none: made of the predictions that the seeds' cells store",
    ),
)
