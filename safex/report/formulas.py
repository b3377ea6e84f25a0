"""What is computed and how, in words and formulas with their sources; only for what a report contains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .sources import Sources
from .values import items, listing, number, part, rows

EXPERT = "An expert is a pair layer:expert; the layer is the GGUF block index."
ACTIVATION = (
    "Its activation p in a set of prompts is the sum of its selections over the tokens of a phase, divided by the "
    "number of these tokens; the activations of a layer add up to its top-k. Phases: prompt, all tokens of the "
    "rendered prompt; suffix, those after the user's text, where the model is about to commit to an answer; "
    "response, generated tokens."
)
SES = (
    "Stability-based expert selection (SAFEx, Lai et al. 2025): the prompts of each set are resampled S times with "
    "replacement; in each resample experts are ranked by activation. The frequency of an expert is the share of "
    "resamples in which it is among the top N; it is stable if its frequency reaches the threshold. E_id holds the "
    "experts that are stable in regular and in jailbreak prompts, E_ctrl those that are stable in regular prompts "
    "but not in jailbreak ones. This rule also returns experts that are active for any text, so read the groups "
    "together with the controls. An expert of a group is called specific if its activation differs between the sets "
    "that the group tells apart."
)
CONTRAST = (
    "Contrast: an expert enters ctrl if its activation is higher in regular than in jailbreak and in benign "
    "prompts, id if it is higher in regular and in jailbreak prompts than in benign ones. Higher means: the lower "
    "bootstrap bound of both differences is above zero, and the label-permutation p-value passes Benjamini-Hochberg "
    "at the given false discovery rate. Under random labels both groups are empty."
)
METHODS = {"ses": SES, "contrast": CONTRAST}
MODES = {
    "zero": "zero multiplies the output of a masked expert by the gain (0: nothing is left of it), and nothing is "
    "renormalised",
    "reroute": "reroute keeps the router from selecting a masked expert, the next best takes its place",
    "force": "force makes the router select the experts for every token",
}
JUDGES = {
    "keyword": "keyword looks for refusal phrases where refusals stand",
    "logit": "logit adds up the probability of all beginnings of a refusal, and calls it a refusal from one half on",
    "gguf": "gguf asks a guard model by the probabilities of its answers",
    "openai": "openai asks a model at an endpoint",
}
RATES = (
    "A rate is k of the n answers that could be read. Its interval is Wilson's (1927): (k + z²/2) / (n + z²) ± "
    "z √(k (n − k) / n + z²/4) / (n + z²), z = 1.96. Other holds all that is neither a refusal nor compliance. Answers "
    "that could not be read (empty, cut off before anything could be judged, nothing but reasoning, text that repeats "
    "itself or is no language) are counted apart and are in no rate."
)
PAIRED = (
    "A difference of rates on the same prompts (with and without the mask; twins of regular and jailbreak prompts) "
    "is (g − l) / n, with l answers that read so only on the first side and g only on the second. Its interval "
    "holds every difference d with |g − l − n d| ≤ z √(n (2 q + d (1 − d))), where q is the likeliest share of l if "
    "d is true (Tango 1998). p is McNemar's (1947) exact one: the probability, if both were equally likely, that l "
    "+ g changes divide as unequally as they did. Pairs of which an answer could not be read are left out; the bounds "
    "are the least and the largest difference of all pairs, whatever those answers may have been (Manski 1990)."
)
SAMPLED = (
    "Several answers a prompt: the intervals use the effective number of answers, n divided by the design effect "
    "(how much more a mean varies between prompts than it would if all answers were independent), and p swaps whole "
    "prompts."
)
UNPAIRED = (
    "The jailbreak prompts are not twins of the regular ones; the interval of the difference of their rates is put "
    "together from the two intervals (square-and-add, Newcombe 1998)."
)
CATEGORIES = "p-values of categories are corrected for their number within a set (Holm 1979)."
CONTROLS = (
    "A control mask holds as many experts as the mask, none of them its own: {kinds}. p = (1 + controls that do at "
    "least as much as the mask) / (1 + controls): with fewer than 19 it can't come to 0.05 (Phipson and Smyth "
    "2010). To do more is to leave less refusal and more compliance; on benign prompts, where that is damage, the "
    "other way."
)
KINDS = {
    "uniform": "uniform, drawn from all layers",
    "layer": "layer, drawn from the same layers, as many in each",
    "frequency": "frequency, drawn by likeness in activation (the nearest half the time, the next a quarter, ...)",
    "active": "active, the most active of all",
    "active-layer": "active-layer, the most active of the same layers",
    "shuffled": "shuffled, the same experts in random order",
}
UTILITY = (
    "Cost on harmless text: perplexity = exp(mean of −log p(token)); KL = Σ p log(p / q) over the vocabulary, p "
    "without and q with the mask, mean over tokens. Intervals: pieces of text resampled, the same ones for both "
    "models (expanded percentile, Hesterberg 2015)."
)
KAPPA = "Kappa = (a − e) / (1 − e), with a the share of equal labels and e what chance gives (Cohen 1960)."
SWEEP = (
    "The refusal logit of a prompt is L = log P(refusal starts) − log P(compliance starts), natural logs; P of a "
    "side is the sum over its starts, that of a start the product over its tokens. The effect of an expert is the "
    "mean of L masked − L unmasked over the prompts of a set; interval: percentile bootstrap of prompts, twins "
    "drawn together; p: paired t-test on regular prompts, two-sided, adjusted for the number of experts "
    "({correction}). An expert lowers refusal if its effect is below 0 and the adjusted p at most {alpha}. It does "
    "so more than on benign prompts if also the interval of effect(regular) − effect(benign) lies below 0."
)
STARTS = (
    "The starts are the shortest beginnings, of at most 6 tokens, that tell the model's own refusals from its "
    "compliant answers: 95 % of the answers that begin so are of one side, both sides weighing the same."
)
CORRECTIONS = {"holm": "Holm 1979", "bh": "Benjamini and Hochberg 1995"}
GRADIENT = (
    "The gradient is dL / d gain at gain 1, from (L(1 + h) − L(1 − h)) / 2h with h = {step}; to first order a mask "
    "changes L by minus the gradient. Half the step shows how far it is from converged."
)
FEATURES = (
    "The feature vector of an expert for a prompt is the mean (pool last: the last) of its outputs over the tokens of "
    "a phase, before the gate weight. With routing forced all tokens go through the expert; with natural only those "
    "that select it count, and a prompt may have none."
)
PROBES = (
    "A probe is logistic regression with an L2 penalty on standardised features; that of a group reads all its experts "
    "side by side. Each prompt is scored by probes that saw neither it nor its twins: prompts of one pair or text stay "
    "in one fold. C is chosen by log-loss in three folds of the training prompts; scaling, choice and fit see training "
    "prompts only. Measures are means over the repeats. {held}AUC is the probability that a positive prompt scores "
    "above a negative one of its fold, ties counting half; its interval holds DeLong's (1988), the variance summed "
    "over twins (Obuchowski 1997), and Newcombe's (2006, method 5). Rates have Wilson's interval with the effective "
    "number of prompts, that of F1 is mapped from its rate. Intervals say what probes trained on as many prompts would "
    "score on further ones; that folds share training prompts is not covered (Bengio and Grandvalet 2004)."
)
HELD = "A fold holds whole categories. "
PROBE_CONTROLS = (
    "Random experts are as many as the group has, none of them its own: {kinds}. p = (1 + draws with an AUC at least "
    "as high) / (1 + draws), from repeats that both have: with fewer than 19 draws it can't come to 0.05."
)
SHUFFLED = (
    "Shuffled labels: the whole procedure, on labels exchanged between prompts with twins kept together; p likewise, "
    "in the first repeat."
)
BAG_OF_WORDS = (
    "The bag of words is tf-idf of words and pairs of words, with the same classifier and folds; the difference of "
    "accuracy is paired, prompt by prompt (Tango 1998). It knows what a prompt says and nothing of the model."
)
TRANSFER = (
    "Transfer: the same probes, tried on prompts of sets that they never trained on and on the task's negative ones of "
    "the fold left out, so on no twin of a training prompt."
)
PLANE = (
    "The plane: the first two principal components of a group's features, all prompts standardised together, without "
    "regard to sets."
)
REDUNDANCY = (
    "The first k experts of an order that is fixed beforehand are masked, for each k of a grid from 0 to K. "
    "Half-point: the smallest k from which on refusal(k) ≤ refusal(0) / 2 up to K, read between the measured "
    "sizes along u = log2(1 + k) / log2(1 + K). Robustness: the area under refusal(k) / refusal(0) over u, by the "
    "trapezoidal rule (as R of Schneider et al. 2011 and the deletion score of Petsiuk et al. 2018, here on a "
    "logarithmic axis): 1 where nothing is lost, near 0 where the first expert takes all. Compliance: its area as "
    "it is. Intervals: prompts resampled, twins together, the same ones for all sizes and orders (expanded "
    "percentile, Hesterberg 2015; where all prompts agree, draws from Jeffreys' posterior). p = (1 + control "
    "orders with an area as low) / (1 + control orders)."
)
ORDERS = "The first k of a control order hold as many experts as the first k of the order: {kinds}."
PAIRS = "The interaction of two experts is effect(both) − effect(first) − effect(second)."


def formulas(sources: Sources) -> list[str]:
    """Paragraphs for the kinds of files at hand."""
    used = {str(s.content.parameters.get("method")): None for s in sources.of("expert_set")}
    kinds = ("probing", "evaluation", "sweep", "redundancy")
    probings, evaluations, sweeps, curves = ([s.content for s in sources.of(kind)] for kind in kinds)
    without_activation = len(sweeps) + len(probings) + len(curves) == len(sources.files)
    return [
        EXPERT if without_activation else f"{EXPERT} {ACTIVATION}",
        *(METHODS[name] for name in used if name in METHODS),
        *_probing_formulas(probings),
        *_modes([*evaluations, *sweeps, *curves]),
        *_evaluation_formulas(evaluations),
        *_sweep_formulas(sweeps),
        *_redundancy_formulas(curves),
    ]


def _modes(contents: list[dict[str, Any]]) -> list[str]:
    """What a mask does, of the modes that are used."""
    masked = [
        content for content in contents if content.get("mask") or content.get("rows") or content.get("sizes")
    ]
    used = _named(MODES, (part(content, "parameters").get("mode") for content in masked))
    return [f"A mask acts while the model runs: {'; '.join(used)}."] if used else []


def _named(texts: dict[str, str], names: Iterable[Any]) -> list[str]:
    """The texts of those names that have one, once each."""
    return [texts[name] for name in dict.fromkeys(map(str, names)) if name in texts]


# --- probings


def _probing_formulas(probings: list[dict[str, Any]]) -> list[str]:
    if not probings:
        return []
    tasks = [task for probing in probings for task in rows(probing.get("tasks"))]
    groups = [group for task in tasks for group in rows(task.get("groups"))]
    kinds = _named(KINDS, (row.get("kind") for group in groups for row in rows(group.get("controls"))))
    held = any(part(probing, "parameters").get("hold_out") for probing in probings)
    conditional = [
        (PROBE_CONTROLS.format(kinds="; ".join(kinds)), bool(kinds)),
        (SHUFFLED, any(group.get("shuffled") for group in groups)),
        (BAG_OF_WORDS, any(task.get("words") for task in tasks)),
        (TRANSFER, any(task.get("transfer") for task in tasks)),
        (PLANE, any(probing.get("projection") for probing in probings)),
    ]
    first = PROBES.format(held=HELD if held else "")
    return [FEATURES, first, *(text for text, holds in conditional if holds)]


# --- evaluations


def _evaluation_formulas(evaluations: list[dict[str, Any]]) -> list[str]:
    if not evaluations:
        return []
    results = [part(found) for e in evaluations for found in part(e, "results").values()]
    judges = _named(
        JUDGES, (str(name).partition(":")[0] for e in evaluations for name in items(e.get("judges")))
    )
    sampled = any((number(part(e, "parameters").get("n_samples")) or 1) > 1 for e in evaluations)
    twins = [part(found, "jailbreak").get("twins") for found in results]
    conditional = [
        (PAIRED, any(e.get("mask") for e in evaluations) or True in twins),
        (SAMPLED, sampled),
        (UNPAIRED, False in twins),
        (CATEGORIES, any(_has_category_changes(found) for found in results)),
        (_controls(results), any(found.get("controls") for found in results)),
        (UTILITY, any(e.get("utility") for e in evaluations)),
        (KAPPA, any(e.get("agreement") for e in evaluations)),
    ]
    said = [f"Judges read each answer as refuse, comply or other: {'; '.join(judges)}."] if judges else []
    return [*said, RATES, *(text for text, holds in conditional if holds)]


def _has_category_changes(results: dict[str, Any]) -> bool:
    return any("refuse" in row for set_ in rows(results.get("sets")) for row in rows(set_.get("categories")))


def _controls(results: list[dict[str, Any]]) -> str:
    kinds = _named(KINDS, (row.get("kind") for found in results for row in rows(found.get("controls"))))
    return CONTROLS.format(kinds="; ".join(kinds))


# --- sweeps


def _sweep_formulas(sweeps: list[dict[str, Any]]) -> list[str]:
    if not sweeps:
        return []
    parameters = [part(sweep, "parameters") for sweep in sweeps]
    corrections = _named(CORRECTIONS, (given.get("correction") for given in parameters))
    alphas = listing(dict.fromkeys(given.get("alpha", 0.05) for given in parameters))
    steps = listing(dict.fromkeys(given.get("step") for given in parameters))
    conditional = [
        (STARTS, any(part(sweep, "starts", "coverage") for sweep in sweeps)),
        (GRADIENT.format(step=steps), any("gradient" in row for s in sweeps for row in rows(s.get("rows")))),
        (PAIRS, any(sweep.get("pairs") for sweep in sweeps)),
    ]
    first = SWEEP.format(correction=listing(corrections), alpha=alphas)
    return [first, *(text for text, holds in conditional if holds)]


# --- redundancy curves


def _redundancy_formulas(curves: list[dict[str, Any]]) -> list[str]:
    if not curves:
        return []
    kinds = _named(KINDS, (row.get("kind") for found in curves for row in rows(found.get("controls"))))
    conditional = [
        (ORDERS.format(kinds="; ".join(kinds)), bool(kinds)),
        (UTILITY, any(found.get("utility") for found in curves)),
    ]
    return [REDUNDANCY, *(text for text, holds in conditional if holds)]
