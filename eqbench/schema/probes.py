"""The options of every probe, conf/probe/<id>.yaml (no torch)."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

from eqbench.schema.checks import Split, require

FINITE, CONTINUOUS = "finite", "continuous"  # kinds of groups: those whose elements are listed, those with generators


@dataclass
class Probe:
    """What the options of every probe share.

    Attributes:
        version: bumped when the probe's mathematics changes: exactly its cells are then computed again.
        kinds: of the groups that it takes; none: the probe has no group, and writes one cell, under group `none`.
        compares: whether it compares weights with others of the same architecture (`config.Plan.others`).
        single: whether it reads the weights of one network: a mean of several networks' logits, or of one's over a group, is
            skipped.
        states: of the weights that it takes; none: all.
        recalls: whether it reads what was recorded while the weights were trained.
    """

    version: ClassVar[int] = 1
    kinds: ClassVar[tuple[str, ...]] = ()
    compares: ClassVar[bool] = False
    single: ClassVar[bool] = False
    states: ClassVar[tuple[str, ...]] = ()
    recalls: ClassVar[bool] = False
    images: int = 256
    split: Split = Split.test

    def __post_init__(self) -> None:
        require(self.images >= 8, "images", "at least 8", self.images)


@dataclass
class Resampled(Probe):
    """A probe whose intervals are over images."""

    version: ClassVar[int] = 2
    resamples: int = 2000  # of the paired bootstrap over images

    def __post_init__(self) -> None:
        super().__post_init__()
        require(100 <= self.resamples <= 10**5, "resamples", "at least 100 (at most 100000)", self.resamples)


@dataclass
class Orbit(Resampled):
    """conf/probe/orbit.yaml: equivariance of the output and of every layer over a finite group's orbit."""

    version: ClassVar[int] = 4
    kinds: ClassVar[tuple[str, ...]] = (FINITE,)
    floor_images: int = 8  # images on which the symmetrised twin is measured
    aligned_below: int = 8  # the aligned size is searched from this many pixels below the native size ...
    aligned_above: int = 32  # ... to this many above it
    layers: bool = True  # measure every layer too, by the ladder of representations
    ridge: float = 3.0  # of the fitted map: shrinkage towards the permuted one, in channels / positions fitted to

    def __post_init__(self) -> None:
        super().__post_init__()
        require(2 <= self.floor_images <= self.images, "floor_images", "in 2..images", self.floor_images)
        for key in ("aligned_below", "aligned_above"):
            require(0 <= getattr(self, key) <= 512, key, "in 0..512 px", getattr(self, key))
        require(0 < self.ridge <= 1e6, "ridge", "in (0, 1000000]", self.ridge)


@dataclass
class Lie(Resampled):
    """conf/probe/lie.yaml: the Lie derivative of the output and of every layer along each generator."""

    kinds: ClassVar[tuple[str, ...]] = (CONTINUOUS,)
    sigma: float = 1.0  # px: width of the Gaussian that band-limits the images before they are differentiated
    controls: int = 2  # phase-randomised directions of the same spectrum and norm, an image
    attribution_images: int = 8  # images on which the error is attributed to layers
    attribution_probes: int = 16  # random probes of that attribution, an image; exact where there are no more classes
    compat: str | None = None  # "lie-deriv": the definitions of ngruver/lie-deriv, to compare with published numbers

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.sigma <= 8, "sigma", "in 0..8 px", self.sigma)
        require(1 <= self.controls <= 16, "controls", "in 1..16", self.controls)
        require(
            0 <= self.attribution_images <= self.images, "attribution_images", "in 0..images", self.attribution_images
        )
        require(2 <= self.attribution_probes <= 256, "attribution_probes", "in 2..256", self.attribution_probes)
        require(self.compat in (None, "lie-deriv"), "compat", "lie-deriv or nothing", self.compat)


@dataclass
class Circuits(Resampled):
    """conf/probe/circuits.yaml: families of units, and the symmetry of the weights between them."""

    kinds: ClassVar[tuple[str, ...]] = (FINITE,)
    single: ClassVar[bool] = True
    null_images: int = 128  # images on which the random twin is measured
    tuning_images: int = 8  # images that are turned by 24 angles for tuning curves; 0: none
    aligned_below: int = 8  # the aligned size is searched from this many pixels below the native size ...
    aligned_above: int = 32  # ... to this many above it

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.null_images >= 8, "null_images", "at least 8", self.null_images)
        require(0 <= self.tuning_images <= 256, "tuning_images", "in 0..256", self.tuning_images)
        for key in ("aligned_below", "aligned_above"):
            require(0 <= getattr(self, key) <= 512, key, "in 0..512 px", getattr(self, key))


@dataclass
class Ablation(Resampled):
    """conf/probe/ablation.yaml: what zeroing the least and the most equivariant channels does."""

    kinds: ClassVar[tuple[str, ...]] = (FINITE,)
    single: ClassVar[bool] = True
    percent: float = 10.0  # of the channels of each layer
    draws: int = 3  # random choices of channels, as null
    layers: int = 8  # of which channels are zeroed alone too, at even depths
    layer_images: int = 64  # images for those; 0: no single layers

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.percent <= 50, "percent", "in (0, 50]", self.percent)
        require(1 <= self.draws <= 100, "draws", "in 1..100", self.draws)
        require(1 <= self.layers <= 1000, "layers", "in 1..1000", self.layers)
        require(self.layer_images == 0 or self.layer_images >= 8, "layer_images", "0, or at least 8", self.layer_images)


@dataclass
class Sweep(Resampled):
    """conf/probe/sweep.yaml: the error along a one-parameter family of transformations."""

    kinds: ClassVar[tuple[str, ...]] = (CONTINUOUS,)


@dataclass
class Consistency(Resampled):
    """conf/probe/consistency.yaml: how often the prediction stays the same."""

    kinds: ClassVar[tuple[str, ...]] = (FINITE, CONTINUOUS)


@dataclass
class Spectrum(Probe):
    """conf/probe/spectrum.yaml: extreme eigenvalues, sums and density of the loss Hessian's spectrum."""

    version: ClassVar[int] = 2
    split: Split = Split.train
    top: int = 10  # eigenvalues by value, and by magnitude
    tolerance: float = 1e-3  # largest |Hv - lambda v| / |lambda|
    max_products: int = 80  # Hessian products that Lanczos may use
    trace_products: int = 16  # random probes of the trace and of |H|
    density_probes: int = 4  # of them, those that the density is made of
    density_steps: int = 24  # Hessian products of each
    micro_batch: int = 256  # images whose graph is held at once

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.top >= 1, "top", "at least 1", self.top)
        require(0 < self.tolerance < 1, "tolerance", "in (0, 1)", self.tolerance)
        require(
            self.max_products >= self.top + 2, "max_products", f"at least top + 2 = {self.top + 2}", self.max_products
        )
        require(self.trace_products >= 3, "trace_products", "at least 3", self.trace_products)
        require(
            2 <= self.density_probes <= self.trace_products,
            "density_probes",
            "in 2..trace_products",
            self.density_probes,
        )
        require(3 <= self.density_steps <= 1000, "density_steps", "in 3..1000", self.density_steps)
        require(self.micro_batch >= 2, "micro_batch", "at least 2", self.micro_batch)


@dataclass
class Sharpness(Resampled):
    """conf/probe/sharpness.yaml: how far the loss rises around the weights, after gauge balancing."""

    images: int = 64
    split: Split = Split.train
    steps: int = 20  # of the ascent to the worst perturbation, at most
    sam_radius: float = 0.05  # |d|; everything is measured at half, one and twice its radius
    adaptive_radius: float = 0.5  # |d / th|
    adaptive_max_radius: float = 0.002  # max |d / th|
    average_radius: float = 0.1  # standard deviation of d / th
    directions: int = 8  # random directions of the average, each with both signs
    normalise_logits: bool = False  # divide each image's logits by their standard deviation first
    kink_images: int = 32  # images of the kink ratio
    kink_directions: int = 6  # random directions of the kink ratio
    micro_batch: int = 256  # images whose graph is held at once

    def __post_init__(self) -> None:
        super().__post_init__()
        require(5 <= self.steps <= 1000, "steps", "in 5..1000", self.steps)
        for key in ("sam_radius", "adaptive_radius", "adaptive_max_radius", "average_radius"):
            require(0 < getattr(self, key) <= 100, key, "in (0, 100]", getattr(self, key))
        for key in ("directions", "kink_directions"):
            require(2 <= getattr(self, key) <= 1000, key, "in 2..1000", getattr(self, key))
        require(self.kink_images >= 2, "kink_images", "at least 2", self.kink_images)
        require(self.micro_batch >= 2, "micro_batch", "at least 2", self.micro_batch)


@dataclass
class Slices(Resampled):
    """conf/probe/slices.yaml: the loss along lines, planes, orbits and interpolations between weights."""

    compares: ClassVar[bool] = True
    single: ClassVar[bool] = True
    images: int = 64
    split: Split = Split.train
    directions: int = 4  # random filter-normalised directions
    points: int = 11  # of a line, odd: the middle one is the weights
    span: float = 1.0  # half a line's length, in norms of the filters
    grid: int = 11  # points of a side of the surface, odd; 0: no surface
    eigenvectors: int = 2  # of the largest eigenvalues; 0: none
    max_products: int = 40  # Hessian products that finding them may take
    path_points: int = 11  # of an interpolation, both ends with it
    micro_batch: int = 256  # images whose graph is held at once

    def __post_init__(self) -> None:
        super().__post_init__()
        require(2 <= self.directions <= 100, "directions", "in 2..100", self.directions)
        require(5 <= self.points <= 201 and self.points % 2 == 1, "points", "odd, in 5..201", self.points)
        require(0 < self.span <= 10, "span", "in (0, 10]", self.span)
        require(
            self.grid == 0 or (5 <= self.grid <= 51 and self.grid % 2 == 1), "grid", "0, or odd in 5..51", self.grid
        )
        require(0 <= self.eigenvectors <= 10, "eigenvectors", "in 0..10", self.eigenvectors)
        most = self.eigenvectors + 2
        require(self.max_products >= most, "max_products", f"at least eigenvectors + 2 = {most}", self.max_products)
        require(3 <= self.path_points <= 101, "path_points", "in 3..101", self.path_points)
        require(self.micro_batch >= 2, "micro_batch", "at least 2", self.micro_batch)


@dataclass
class Symmetries(Probe):
    """conf/probe/symmetries.yaml: the certificate of the weights' symmetries; its identities hold for any classes."""

    version: ClassVar[int] = 2
    single: ClassVar[bool] = True
    images: int = 16
    split: Split = Split.train
    exact_images: int = 2  # the first, on which identities are checked in float64
    curvature_images: int = 16  # the first, on which curvature is measured in float32, if there are as many
    batch_statistics: bool = False  # batch norms as in training
    micro_batch: int = 16  # images whose graph is held at once

    def __post_init__(self) -> None:
        super().__post_init__()
        require(2 <= self.exact_images <= self.images, "exact_images", "in 2..images", self.exact_images)
        require(self.curvature_images >= 2, "curvature_images", "at least 2", self.curvature_images)
        require(self.micro_batch >= self.exact_images, "micro_batch", "at least exact_images", self.micro_batch)


@dataclass
class GroupLandscape(Resampled):
    """conf/probe/group_landscape.yaml: symmetry of weights, gradient, curvature and paths under a finite group."""

    kinds: ClassVar[tuple[str, ...]] = (FINITE,)
    single: ClassVar[bool] = True
    images: int = 64
    split: Split = Split.train
    blocks: int = 16  # of images, over which gradients are bootstrapped
    probes: int = 4  # random vectors of the commutator, each with a random permutation of channels as its null
    tolerance: float = 1e-2  # largest |Hv - lambda v| / |lambda| of the top eigenvalue
    max_products: int = 40  # Hessian products that Lanczos may use
    trace_products: int = 8  # random probes of the trace
    points: int = 7  # of each path
    aligned_below: int = 8  # the aligned size is searched from this many pixels below the native size ...
    aligned_above: int = 32  # ... to this many above it
    micro_batch: int = 256  # images whose graph is held at once

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("blocks", "probes", "trace_products"):
            require(2 <= getattr(self, key) <= 1000, key, "in 2..1000", getattr(self, key))
        require(0 < self.tolerance < 1, "tolerance", "in (0, 1)", self.tolerance)
        require(self.max_products >= 3, "max_products", "at least 3", self.max_products)
        require(3 <= self.points <= 101, "points", "in 3..101", self.points)
        for key in ("aligned_below", "aligned_above"):
            require(0 <= getattr(self, key) <= 512, key, "in 0..512 px", getattr(self, key))
        require(self.micro_batch >= 4, "micro_batch", "at least 4", self.micro_batch)


@dataclass
class Robustness(Resampled):
    """conf/probe/robustness.yaml: accuracy on shifted, rotated, noisy and attacked images; needs labels."""

    version: ClassVar[int] = 3
    shift: float = 0.125  # of the side, along both axes at once
    rotation: float = 30.0  # degrees: turned by it and by half of it, both ways
    noise: list[float] = field(
        default_factory=lambda: [0.04, 0.08, 0.16]
    )  # standard deviations, images being in [0, 1]
    pgd_eps: list[float] = field(default_factory=lambda: [2.0, 8.0])  # 255ths: the largest changes of a pixel
    pgd_steps: int = 10  # gradients of an attack

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.shift <= 0.5, "shift", "in (0, 0.5] of the side", self.shift)
        require(0 < self.rotation <= 180, "rotation", "in (0, 180] degrees", self.rotation)
        for key, count, most in (("noise", 3, 1.0), ("pgd_eps", 2, 255.0)):
            values = list(getattr(self, key))
            fine = len(values) == count and values[0] > 0 and values[-1] <= most
            fine = fine and all(a < b for a, b in pairwise(values))
            require(fine, key, f"{count} ascending numbers in (0, {most:g}]", values)
        require(1 <= self.pgd_steps <= 1000, "pgd_steps", "in 1..1000", self.pgd_steps)


@dataclass
class Dynamics(Probe):
    """conf/probe/dynamics.yaml: what was recorded while the weights were trained; the images play no part."""

    states: ClassVar[tuple[str, ...]] = ("final",)
    recalls: ClassVar[bool] = True
    images: int = 8
    split: Split = Split.train


PROBES: dict[str, type[Probe]] = {
    "orbit": Orbit,
    "circuits": Circuits,
    "ablation": Ablation,
    "lie": Lie,
    "sweep": Sweep,
    "consistency": Consistency,
    "spectrum": Spectrum,
    "symmetries": Symmetries,
    "group_landscape": GroupLandscape,
    "sharpness": Sharpness,
    "slices": Slices,
    "robustness": Robustness,
    "dynamics": Dynamics,
}
