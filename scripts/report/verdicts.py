"""Tables of the studies in results/: what was asked, what came out, and how to run it again.

A study is what `python -m scripts.ablate` writes: results/NAME/study.json, beside its figure and
the records of its runs.
"""

import re
from collections.abc import Container, Sequence

from scripts.report.studies import MEASURES, NETWORKS, markdown

HEADLINE = {  # studies in the README's second table
    *("c3_table", "relu_vs_tanh", "lrn_cifar18", "dropout", "augmentation", "pooling"),
    *("lenet_vs_alexnet", "transfer_alexnet"),
}


def rows(study: dict) -> list[list[str]]:
    """A head, and a row for each arm: its numbers, and how it compares with the first."""
    ratio, unit = study["metric"] == "epochs", "" if study["metric"] == "epochs" else "%"
    first = next(iter(study["arms"]))
    head = ["arm", "runs", MEASURES[study["metric"]], f"against {first}", "95% interval"]
    table = [[*head, "p (Holm)"]]
    compared = {each["arms"][1]: each for each in study["comparisons"]}
    form = "x {:.3g}".format if ratio else "{:+.3f}".format
    for arm, numbers in study["arms_measured"].items():
        value = numbers["geometric_mean"] if ratio else numbers["mean"]
        row = [arm, str(numbers["n"]), f"{value:.3g}{unit}"]
        if numbers["censored"]:
            row[-1] = f"> {row[-1]} ({numbers['censored']} did not reach it)"
        elif numbers["deviation"] is not None and not ratio:
            row[-1] += f" ± {numbers['deviation']:.2f}"
        if at_chance := numbers.get("at_chance"):  # older files have none
            row[-1] += f" ({at_chance} at chance)"
        each = compared.get(arm)
        if each and each["interval"]:
            low, high = each["interval"]
            row += [form(each["mean"]), f"{form(low)} to {form(high)}", f"{each['p_adjusted']:.2g}"]
        table.append(row + ["–"] * (len(table[0]) - len(row)))
    return table


def sentences(study: dict) -> list[str]:
    """All that the study found, in words."""
    return [each["sentence"] for each in study["comparisons"]] + not_reached(study)


def not_reached(study: dict, arms: Container[str] | None = None) -> list[str]:
    """A sentence for each arm, of `arms`, that got to the error, or through its epochs, with no
    value tried.
    """
    did_not = "did not reach it" if study["metric"] == "epochs" else "diverged"
    return [
        f"{arm} {did_not} with any {choice['setting']} of {', '.join(choice['values'])} "
        f"({_seeds(next(iter(choice['values'].values())))})"
        for arm, choice in study["choice"].items()
        if not choice["reached"] and (arms is None or arm in arms)
    ]


def _seeds(numbers: Sequence) -> str:
    """Of the runs of one value."""
    return f"seeds 0 to {len(numbers) - 1}" if len(numbers) > 1 else "seed 0"


def trained(study: dict) -> str:
    """How long the runs that are compared took, one after the other."""
    hours = study["hours_trained"]
    words = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    return f"{words} of training in the runs that are compared"


def verdict_table(studies: list[dict]) -> str:
    """One row for each study as the catalog has it."""
    table = [["question", "runs", "verdict", "the claim"]]
    for study in (study for study in studies if not study["added"]):
        source = re.sub(r"(LeCun|Krizhevsky) et al\. ", "", study["source"])  # the years tell
        claim = f"{study['claim']} ({source})"
        table.append(
            [study["question"], f"{study['pairs']} pairs", "; ".join(sentences(study)), claim]
        )
    return markdown(table)


def all_verdicts(studies: list[dict]) -> str:
    """Each study under a heading: question, claim, figure, table, choice, and its command."""
    return "\n\n".join(part for study in studies for part in _section(study))


def _section(study: dict) -> list[str]:
    name, elsewhere = study["name"], f" Others measured {study['others']}." * bool(study["others"])
    networks = {NETWORKS[network] for network in (study["model"], *study["models"].values())}
    claim = f"The claim: {study['claim']} ({study['source']})."
    parts = [
        f"### `{name}`: {' '.join([study['question'], *study['added']])}",
        f"{' and '.join(sorted(networks))}. {claim}{elsewhere}",
        "\n".join(f"- {sentence}." for sentence in sentences(study)),
        f"![{study['question']}]({name}/figure.svg)",
        markdown(rows(study)),
    ]
    if study["metric"] != "epochs":
        measured = study["arms_measured"].items()
        errors = [f"{arm} {numbers['train_error_pct']:.3g}%" for arm, numbers in measured]
        parts.append(f"Mean training error at the end: {', '.join(errors)}.")
    if others := [f"`{other}`" for other in study["studies"] if other != name]:
        parts.append(f"Some of its runs are those of {' and '.join(others)}, too.")
    if study.get("pretraining"):
        starting = [arm for arm, own in study["arms"].items() if "{pretrained}" in " ".join(own)]
        flags = " ".join([*study["base"], *study["pretraining"]])
        parts.append(
            f"{' and '.join(starting)}: from a run of the same seed, `{flags}` (the last value "
            "of a flag counts)."
        )
    chosen = {arm: each for arm, each in study["choice"].items() if each["reached"]}
    for arm, choice in chosen.items():
        tried = ", ".join(
            f"{value}: {'diverged' if None in numbers else f'{sum(numbers) / len(numbers):.3g}'}"
            for value, numbers in choice["values"].items()
        )
        edge = "; at the edge of the grid" * choice["at_edge"]
        seeds = _seeds(choice["values"][choice["chosen"]])
        parts.append(
            f"{choice['setting']} of {arm}: {choice['chosen']}{edge} (mean "
            f"{MEASURES[choice['metric']]} on {seeds}: {tried})."
        )
    commits = ", ".join(f"`{commit[:8]}`" for commit in study["commits"])
    parts.append(
        f"`{study['command']}`: {trained(study)}, "
        f"{study['threads']} thread{'s' * (study['threads'] > 1)} per run; commit {commits}."
    )
    return parts
