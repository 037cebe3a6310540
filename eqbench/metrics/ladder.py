"""Metrics of the orbit probe that every layer has: the ladder of representations, CKA, normalised variance."""

from eqbench.metrics.base import Metric

_WHERE = (
    "at the aligned size, on the half of the images that nothing was fitted to, the mean over the group's generators"
)
_SHUFFLED = "the same on pairs of images that do not belong together, with a map fitted to those"
_COST = "1 forward an image and generator, and 1 of the image, which the orbit's logits share"
_LADDER = "Lenc & Vedaldi 2015, CVPR; Bökman & Kahl 2023, NeurIPS"


def _rung(
    name: str, title: str, symbol: str, map_: str, replaced: str, citation: str, *, headline: bool = False
) -> Metric:
    return Metric(
        f"layer_error_{name}",
        "orbit",
        title,
        symbol,
        "",
        f"How far a layer's features of the transformed image are from those of the image {map_}; 0 is exact, 1 is no better than their mean, √2 is unrelated. {_WHERE.capitalize()}.",
        f"e = [ mean_g Σₓ |b − {replaced}|² / Σₓ |b|² ]^½, a = f(x), b = R_g⁻¹ f(gx), both less their channels' means",
        citation,
        False,
        null=_SHUFFLED,
        cost=_COST,
        layered=True,
        headline=headline,
    )


LADDER = (
    _rung(
        "trivial",
        "Layer error, as they are",
        "e_id",
        "as they are: the error of an invariant layer",
        "R_g⁻¹ a",
        "eqbench",
    ),
    _rung("spatial", "Layer error, moved", "e_sp", "moved like the pixels", "a", "Lenc & Vedaldi 2015, CVPR"),
    _rung(
        "permuted",
        "Layer error, moved and permuted",
        "e_π",
        "moved like the pixels, their channels permuted",
        "π_g a",
        "Bökman & Kahl 2023, NeurIPS; Olah et al. 2020, Distill",
        headline=True,
    ),
    _rung(
        "fitted", "Layer error, moved and mixed", "e_W", "moved like the pixels, their channels mixed", "W_g a", _LADDER
    ),
    Metric(
        "layer_cka",
        "orbit",
        "Layer CKA",
        "CKA",
        "",
        "Whether images that are alike to a layer stay so when all are transformed, up to any rotation of its features: 1 if some orthogonal map would do, 0 if unrelated. Debiased; blind to what the map is, so no rank is made of it.",
        "CKA = mean_g Σ HSIC₁(a, b) / [ Σ HSIC₁(a, a) Σ HSIC₁(b, b) ]^½, sums over batches",
        "Kornblith et al. 2019, ICML; Song et al. 2012, JMLR; Nguyen et al. 2021, ICLR",
        None,
        null="the same on pairs of images that do not belong together",
        cost=_COST,
        layered=True,
    ),
    Metric(
        "layer_variance",
        "orbit",
        "Normalised variance, invariance",
        "NV",
        "",
        "How much a unit varies over the group for one image, relative to how much it varies between images; 0 is invariant. Standard deviations over the identity and the generators, as in tmeasures, where a unit that is always 0 counts as 1.",
        "NV = mean_u [ meanₓ std_g f_u(gx) / mean_g stdₓ f_u(gx) ]",
        "Quiroga et al. 2020, JCS&T (tmeasures)",
        False,
        null="c₄(m): what m unrelated Gaussian draws give, m the number of elements",
        cost=_COST,
        layered=True,
    ),
    Metric(
        "layer_variance_same",
        "orbit",
        "Normalised variance, same-equivariance",
        "NV_SE",
        "",
        "The normalised variance after the positions have been moved back: 0 is a layer on which the group acts as on the image. Standard deviations over the identity and the generators, as in tmeasures, where a unit that is always 0 counts as 1.",
        "NV_SE = mean_u [ meanₓ std_g (R_g⁻¹ f(gx))_u / mean_g stdₓ (R_g⁻¹ f(gx))_u ]",
        "Quiroga et al. 2020, JCS&T (tmeasures)",
        False,
        null="c₄(m): what m unrelated Gaussian draws give, m the number of elements",
        cost=_COST,
        layered=True,
    ),
    Metric(
        "layer_coverage",
        "orbit",
        "Layers measured",
        "cov",
        "",
        "The share of the network's layers that were measured. The others have features of no declared layout, or the group does not act on them; each says why.",
        "cov = layers measured / layers",
        "eqbench",
        None,
        cost="1 forward of 2 images",
    ),
)
