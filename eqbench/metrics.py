"""Every metric, declared once: the probes fill these in, the boards and the page read them (no torch)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """What a reader must know of one number.

    Attributes:
        name: key in results and stem of the columns `<name>`, `<name>_lo`, ...
        probe: the probe that measures it.
        title, symbol, unit: as shown; the unit of a share or a ratio is "".
        definition: two sentences at most; `formula` in plain Unicode; `citation` as author, year, where.
        higher_is_better: None for a descriptor, which is never ranked and has no arrow.
        floor, null: what the floor and the null beside the value mean for this metric; "" where it has none.
        cost: what it takes, in forward passes an image or Hessian products.
        rank: whether boards are ranked by it.
        headline: shown on the page's first screen; the others are in the CSV and behind a toggle.
    """

    name: str
    probe: str
    title: str
    symbol: str
    unit: str
    definition: str
    formula: str
    citation: str
    higher_is_better: bool | None
    floor: str = ""
    null: str = ""
    cost: str = ""
    rank: bool = False
    headline: bool = False


_TWIN = "the same on the symmetrised twin (kernels averaged over the group, batch norm reset) on the first few images: what the sampling grid alone does to a symmetric network of this architecture, at this size; not a bound"
_PLACEBO = "a group of the same lattice class that was not in the training augmentation"
_ORBIT_COST = "|G| forwards an image, shared by all metrics of the orbit and by all groups of one job"
_LOSS = "mean cross-entropy in evaluation mode, without weight decay, of images from the training split (how many: the spectrum probe's own number)"

_ALL = (
    Metric(
        "lattice_error",
        "orbit",
        "Lattice error, native size",
        "E_G",
        "",
        "How far the logits move over the group's orbit, relative to how far they differ between images; 0 is invariant, about √2 is unrelated, more is a group that shifts the logits of all images together. At the native input size.",
        "E_G = [ Σₓ mean_{g≠e} |f(gx) − f(x)|² / Σₓ |f(x) − mean f|² ]^½",
        "eqbench; cf. Kvinge et al. 2022, NeurIPS (G-EED)",
        False,
        floor=_TWIN,
        null="shuffled pairs: f(gx) against f of another image",
        cost=_ORBIT_COST,
    ),
    Metric(
        "lattice_error_aligned",
        "orbit",
        "Lattice error",
        "E_G*",
        "",
        "The lattice error at the input size, nearest to the native one, where the architecture's own sampling grid is symmetric. Compare architectures by this one: at other sizes stride and padding alone can cost 0.5.",
        "E_G* = E_G at n* = the nearest size with twin floor < 10⁻³, else argmin floor",
        "eqbench",
        False,
        floor=_TWIN,
        null="shuffled pairs: f(gx) against f of another image",
        cost=_ORBIT_COST + ", once more at n* where n* is not the native size",
        rank=True,
        headline=True,
    ),
    Metric(
        "aligned_size",
        "orbit",
        "Aligned input size",
        "n*",
        "px",
        "The input size at which the aligned lattice error is measured.",
        "n* = the nearest size with twin floor < 10⁻³, else argmin floor",
        "eqbench",
        None,
        cost="2 forwards of 4 noise images a size tried, once an architecture and group",
    ),
    Metric(
        "symmetry_share",
        "orbit",
        "Symmetry loss share",
        "S_G",
        "",
        "The share of the test loss that averaging the prediction over the group would remove: what the missing symmetry costs. In [0, 1]; a network that knows nothing also has 0, so read it beside the accuracy and the placebo.",
        "S_G = 1 − Σₓ CE(mean_g p(gx), y) / Σₓ mean_g CE(p(gx), y)",
        "after Shen et al. 2025, TMLR (twirled loss)",
        False,
        floor=_TWIN,
        null=f"not chance but the placebo's share: {_PLACEBO}",
        cost=_ORBIT_COST,
        headline=True,
    ),
    Metric(
        "js_share",
        "orbit",
        "Jensen–Shannon share",
        "J_G",
        "",
        "The label-free symmetry share: the part of the mean prediction's entropy that knowing the group element explains. In [0, 1].",
        "J_G = 1 − Σₓ mean_g H(p(gx)) / Σₓ H(mean_g p(gx))",
        "Lin 1991, IEEE Trans. Inf. Theory (generalised Jensen–Shannon divergence)",
        False,
        floor=_TWIN,
        null=f"not chance but the placebo's share: {_PLACEBO}",
        cost=_ORBIT_COST,
        headline=True,
    ),
    Metric(
        "js_divergence",
        "orbit",
        "Jensen–Shannon divergence",
        "JSD_G",
        "bit",
        "The mean divergence of the predictions over the orbit from their average.",
        "JSD_G = meanₓ [ H(mean_g p(gx)) − mean_g H(p(gx)) ]",
        "Lin 1991, IEEE Trans. Inf. Theory",
        False,
        floor=_TWIN,
        null=f"not chance but the placebo's divergence: {_PLACEBO}",
        cost=_ORBIT_COST,
    ),
    Metric(
        "placebo_gap",
        "orbit",
        "Placebo gap",
        "Δ_G",
        "",
        "The placebo group's share minus this group's: positive where the network treats this group as a symmetry and a look-alike of it not. None where the placebo was itself in the training augmentation; from the Jensen–Shannon share where there are no labels.",
        "Δ_G = S_placebo − S_G (paired over images)",
        "eqbench",
        True,
        null="0: group and placebo are treated alike",
        cost="the placebo's orbit",
        headline=True,
    ),
    Metric(
        "consistency",
        "orbit",
        "Top-1 consistency",
        "C_G",
        "",
        "How often the transformed image is classed as the image itself.",
        "C_G = mean_{x, g≠e} [argmax f(gx) = argmax f(x)]",
        "Zhang 2019, ICML",
        True,
        floor=_TWIN,
        null="chance agreement of two classifiers with the same class frequencies",
        cost=_ORBIT_COST,
    ),
    Metric(
        "kappa",
        "orbit",
        "Cohen's kappa",
        "κ_G",
        "",
        "Consistency beyond chance: 1 is always the same class, 0 is what equal class frequencies alone would give.",
        "κ_G = (C_G − C_chance) / (1 − C_chance)",
        "Cohen 1960, Educ. Psychol. Meas.",
        True,
        floor=_TWIN,
        null="0: chance agreement",
        cost=_ORBIT_COST,
        headline=True,
    ),
    Metric(
        "accuracy",
        "orbit",
        "Top-1 accuracy",
        "acc",
        "",
        "Share of images classed rightly, untransformed.",
        "acc = meanₓ [argmax f(x) = y]",
        "",
        True,
        null="the most frequent class alone",
        cost="1 forward an image",
        headline=True,
    ),
    Metric(
        "orbit_accuracy",
        "orbit",
        "Orbit accuracy",
        "acc_G",
        "",
        "Share of transformed images classed rightly, over the whole orbit.",
        "acc_G = mean_{x, g} [argmax f(gx) = y]",
        "Mondal et al. 2023, NeurIPS (group accuracy)",
        True,
        null="the most frequent class alone",
        cost=_ORBIT_COST,
    ),
    Metric(
        "loss",
        "spectrum",
        "Loss probed",
        "L",
        "nat",
        f"The loss whose curvature is measured: {_LOSS}.",
        "L = meanₓ CE(p(x), y)",
        "",
        None,
        null="ln(number of classes): a uniform guess",
        cost="1 forward an image",
    ),
    Metric(
        "lambda_max",
        "spectrum",
        "Largest eigenvalue",
        "λ₁",
        "",
        "The sharpest direction of the loss at these weights. Not invariant under rescaling the weights: compare states of one architecture. The interval is the numerical error (Ritz residual), not over images.",
        "λ₁ = max_v vᵀHv / vᵀv, H = ∇²L",
        "Ghorbani et al. 2019, ICML",
        None,
        cost="shared Lanczos run, up to max_products Hessian products",
        headline=True,
    ),
    Metric(
        "lambda_min",
        "spectrum",
        "Smallest eigenvalue",
        "λₙ",
        "",
        "The most negative curvature: below 0, the weights are at a saddle of this loss. The interval is the numerical error (Ritz residual), not over images.",
        "λₙ = min_v vᵀHv / vᵀv",
        "Ghorbani et al. 2019, ICML",
        None,
        cost="the same Lanczos run",
    ),
    Metric(
        "trace",
        "spectrum",
        "Hessian trace",
        "tr H",
        "",
        "The sum of all curvatures, by Hutchinson's estimator deflated by the eigenvectors already found. The interval is over the random probes (Student's t), not over images.",
        "tr H ≈ Σ θᵢ + mean_j vⱼᵀ(I − QQᵀ)H(I − QQᵀ)vⱼ",
        "Hutchinson 1990; Meyer et al. 2021, SOSA (Hutch++)",
        None,
        cost="trace_products Hessian products",
        headline=True,
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}


def of_probe(probe: str) -> list[Metric]:
    """The metrics that a probe may report, in the order of the page."""
    return [metric for metric in _ALL if metric.probe == probe]
