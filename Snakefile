"""eqbench: from conf/ to reports/<suite>/index.html.

data/weights/<model>/<seed>/<state>/                            weights, as timm local-dir: folders; one card.json a seed
data/cells/<suite>/<model>/<seed>/<state>/<group>/<probe>.json  one result a cell
data/parts/<suite>/<model>/<seed>/<state>/<part>.json           which cells a job has brought up to date; either may be `all`
reports/<suite>/                                                results.csv, leaderboard.csv, coverage.csv, figures/, index.html

    snakemake --cores all
    snakemake --cores all --config suite=<id> 'overrides=[probe.orbit.images=32]'
"""

import os
import re
import shlex
import sys
from pathlib import Path

from snakemake.utils import min_version

from eqbench import config as eqconf
from eqbench import costs, locks
from eqbench.errors import UserError, one_line, unknown
from eqbench.stamps import stamps

min_version("9.19")
os.environ.update(
    # Jobs run the python that runs Snakemake, activated or not.
    PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    # Freed activations stay with the process: returning each to the system doubles the time of a forward pass on a CPU.
    MALLOC_MMAP_MAX_="0",
    MALLOC_TRIM_THRESHOLD_=str(2**40),
)
# A job that was sent elsewhere need not have a network, and must not wait for one: what it reads was fetched before, here.
if workflow.remote_exec:
    os.environ.update(HF_HUB_OFFLINE="1")
FIGURES = [
    "tradeoff",
    "symmetry_buys",
    "heatmap",
    "emergence",
    "critical_difference",
    "layers",
    "emergence_by_layer",
    "lie",
    "lie_by_layer",
    "sweep",
    "circuits",
    "families",
    "spectrum",
    "certificate",
    "density",
    "group_landscape",
    "sharpness",
    "slices",
    "surfaces",
    "trajectories",
    "trajectories_by_layer",
    "trajectories_landscape",
    "dynamics",
    "coverage",
]


try:
    for key in config:
        if key not in ("suite", "overrides"):
            raise unknown("key of --config:", key, ["suite", "overrides"])
    OVERRIDES = config.get("overrides") or []
    OVERRIDES = [str(text) for text in (OVERRIDES if isinstance(OVERRIDES, list) else [OVERRIDES])]
    PLAN = eqconf.load_suite(str(config["suite"]) if config.get("suite") else None, OVERRIDES)
    PLAN.stamps(list(PLAN.cells))
    STAMPS = {model: stamps(PLAN.weights(model)) for model in PLAN.origins}
    if workflow.is_main_process:
        locks.adopt(Path(".snakemake"))
    # What was planned goes with each job, wherever it is sent.
    if workflow.remote_exec and os.environ.get("EQBENCH_PLAN", PLAN.fingerprint) != PLAN.fingerprint:
        raise UserError("conf/ changed between planning and start of this job: run snakemake again")
    os.environ.update(EQBENCH_PLAN=PLAN.fingerprint)
except UserError as error:
    print(f"eqbench: error: {one_line(error)}", file=sys.stderr)
    sys.exit(2)

# Handed to jobs as a resource, not a param: what reruns is decided by the resolved values alone.
ARGS = " ".join(map(shlex.quote, PLAN.arguments))
PARTS = [f"data/parts/{PLAN.name}/{'/'.join(part)}.json" for part in PLAN.parts]


def one_of(names):
    return "|".join(map(re.escape, sorted(names))) or "(?!)"


def weights_params(wildcards):
    return PLAN.weights(wildcards.model) | {"stamps": STAMPS[wildcards.model]}


def part_cells(wildcards):
    return PLAN.parts[wildcards.model, wildcards.seed, wildcards.state, wildcards.part]


def cards(wildcards):
    """Its own weights, and those of other seeds that its cells compare them with."""
    return [f"data/weights/{model}/{seed}/card.json" for model, seed in PLAN.cards(part_cells(wildcards))]


def members(wildcards):
    """The weights that a model is made of."""
    return [f"data/weights/{model}/{seed}/card.json" for model, seed in PLAN.members(wildcards.model, wildcards.seed)]


def part_works(wildcards):
    return costs.works(PLAN, part_cells(wildcards), Path("data/weights"))


def train_works(wildcards):
    return [costs.train_work(PLAN, wildcards.model, Path("data/weights"))]


def derive_works(wildcards):
    return [costs.derive_work(PLAN, wildcards.model, Path("data/weights"))]


def cell_params(wildcards):
    return {str(cell): PLAN.config(cell) for cell in part_cells(wildcards)}


envvars:
    "EQBENCH_PLAN",


localrules:
    all,
    fetch,
    collect,
    plot,
    report,


wildcard_constraints:
    suite=re.escape(PLAN.name),
    model=one_of(PLAN.origins),
    seed=r"s\d+",
    state=r"init|final|epoch-\d+|all",


# A limit (`--resources gpu=2`) is how many GPUs this machine has, not how many a cluster may give.
resource_scopes:
    gpu="local",


report: "eqbench/templates/workflow.rst"


rule all:
    input:
        f"reports/{PLAN.name}/index.html",
        PARTS,  # asked for by name, so that a part that was deleted is made again


rule fetch:
    output:
        "data/weights/{model}/{seed}/card.json",
    log:
        "data/logs/fetch/{model}/{seed}.log",
    wildcard_constraints:
        model=one_of(model for model in PLAN.origins if PLAN.verb(model) == "fetch"),
    conda:
        "environment.yml"
    resources:
        overrides=ARGS,
    params:
        weights=weights_params,
    shell:
        "python -m eqbench fetch model={wildcards.model} seed={wildcards.seed} {resources.overrides}"
        " > {log} 2>&1 || {{ tail -n 1 {log} >&2; exit 1; }}"


rule train:
    output:
        "data/weights/{model}/{seed}/card.json",
    log:
        "data/logs/train/{model}/{seed}.log",
    benchmark:
        "data/benchmarks/train/{model}/{seed}.jsonl"
    wildcard_constraints:
        model=one_of(model for model in PLAN.origins if PLAN.verb(model) == "train"),
    conda:
        "environment.yml"
    resources:
        gpu=1,
        mem_mb=lambda wildcards, attempt: costs.job_mb(train_works(wildcards), attempt),
        runtime=lambda wildcards, attempt: costs.job_minutes(train_works(wildcards), attempt),
        overrides=ARGS,
    params:
        weights=weights_params,
    shell:
        "python -m eqbench train model={wildcards.model} seed={wildcards.seed} {resources.overrides}"
        " > {log} 2>&1 || {{ tail -n 1 {log} >&2; exit 1; }}"


rule derive:
    input:
        members,
    output:
        "data/weights/{model}/{seed}/card.json",
    log:
        "data/logs/derive/{model}/{seed}.log",
    benchmark:
        "data/benchmarks/derive/{model}/{seed}.jsonl"
    wildcard_constraints:
        model=one_of(model for model in PLAN.origins if PLAN.verb(model) == "derive"),
    conda:
        "environment.yml"
    resources:
        gpu=1,
        mem_mb=lambda wildcards, attempt: costs.job_mb(derive_works(wildcards), attempt),
        runtime=lambda wildcards, attempt: costs.job_minutes(derive_works(wildcards), attempt),
        overrides=ARGS,
    params:
        weights=weights_params,
    shell:
        "python -m eqbench derive model={wildcards.model} seed={wildcards.seed} {resources.overrides}"
        " > {log} 2>&1 || {{ tail -n 1 {log} >&2; exit 1; }}"


rule probe:
    input:
        cards,
    output:
        "data/parts/{suite}/{model}/{seed}/{state}/{part}.json",
    log:
        "data/logs/probe/{suite}/{model}/{seed}/{state}/{part}.log",
    benchmark:
        "data/benchmarks/probe/{suite}/{model}/{seed}/{state}/{part}.jsonl"
    conda:
        "environment.yml"
    resources:
        gpu=1,
        mem_mb=lambda wildcards, attempt: costs.job_mb(part_works(wildcards), attempt),
        runtime=lambda wildcards, attempt: costs.job_minutes(part_works(wildcards), attempt),
        overrides=ARGS,
    params:
        cells=cell_params,
        stamps=lambda wildcards: PLAN.stamps(part_cells(wildcards)),
        expect=lambda wildcards: PLAN.expectation(part_cells(wildcards)),
    shell:
        "python -m eqbench probe suite={wildcards.suite} model={wildcards.model} seed={wildcards.seed}"
        " state={wildcards.state} part={wildcards.part} expect={params.expect} {resources.overrides}"
        " > {log} 2>&1 || {{ tail -n 1 {log} >&2; exit 1; }}"


rule collect:
    input:
        PARTS,
    output:
        "reports/{suite}/results.csv",
        "reports/{suite}/coverage.csv",
        "reports/{suite}/treatments.csv",
        "reports/{suite}/ensembles.csv",
        report(
            "reports/{suite}/leaderboard.csv",
            caption="eqbench/templates/leaderboard.rst",
            category="Leaderboard",
        ),
    log:
        "data/logs/collect/{suite}.log",
    conda:
        "environment.yml"
    resources:
        overrides=ARGS,
    shell:
        "python -m eqbench collect suite={wildcards.suite} {resources.overrides} > {log} 2>&1 || {{ tail -n 1 {log} >&2; exit 1; }}"


rule plot:
    input:
        rules.collect.output,
    output:
        *(
            report(
                f"reports/{{suite}}/figures/{figure}.svg",
                # Written by the rule itself, below the working directory and not beside this file.
                caption=os.path.abspath(f"reports/{PLAN.name}/figures/{figure}.rst"),
                category="Figures",
                labels={"figure": figure},
            )
            for figure in FIGURES
        ),
        expand("reports/{{suite}}/figures/{figure}.{kind}", figure=FIGURES, kind=("pdf", "rst")),
    log:
        "data/logs/plot/{suite}.log",
    conda:
        "environment.yml"
    resources:
        overrides=ARGS,
    shell:
        "python -m eqbench plot suite={wildcards.suite} {resources.overrides} > {log} 2>&1 || {{ tail -n 1 {log} >&2; exit 1; }}"


rule report:
    input:
        rules.plot.output,
    output:
        "reports/{suite}/index.html",
        "reports/{suite}/analysis.csv",
    log:
        "data/logs/report/{suite}.log",
    conda:
        "environment.yml"
    resources:
        overrides=ARGS,
    shell:
        "python -m eqbench report suite={wildcards.suite} {resources.overrides} > {log} 2>&1 || {{ tail -n 1 {log} >&2; exit 1; }}"


onsuccess:
    print(f"The page: {Path(f'reports/{PLAN.name}/index.html').resolve()}")
