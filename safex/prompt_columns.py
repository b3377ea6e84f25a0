"""What the columns of prompt files are called, and the layouts of files that are published, as tables of data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TEXT_COLUMNS = (
    "prompt",
    "forbidden_prompt",
    "Behavior",
    "Goal",
    "goal",
    "question",
    "text",
    "instruction",
    "messages",
    "conversations",
    "conversation",
    "turns",
    "prompt_text",
    "user_input",
    "prompts_final",
    "user_prompt",
    "user_message",
    "forbidden_question",
    "harmful_question",
    "harmful_medical_request",
    "redteam_query",
    "query",
    "request",
    "adversarial",
    "input",
)
"""Columns that hold the prompt, the first that a file has; other spellings (``Prompt Text``) come after these."""

CONVERSATIONS = ("messages", "conversations", "conversation", "turns", "chat", "dialog", "dialogue")
ID_COLUMNS = (
    "question_id",
    "prompt_id",
    "BehaviorID",
    "behavior_id",
    "conv_id",
    "conversation_id",
    "conversation_hash",
    "release_prompt_id",
    "prompt_uid",
    "qid",
    "q_id",
    "uid",
    "Index",
)
"""Columns that give ids where there is no ``id``, if their values are unique."""

CATEGORY_COLUMNS = (
    "category",
    "SemanticCategory",
    "harm_category",
    "harm_area",
    "hazard",
    "risk_area",
    "content_policy_name",
    "1-category",
    "category_text",
    "categories",
    "topic",
    "policy",
    "subcategory",
    "tags",
)
SYSTEM_COLUMNS = ("system", "system_prompt", "system_message", "sys_prompt", "meta_instruction")
CONTEXT_COLUMNS = ("ContextString", "context")
INPUT_COLUMNS = ("input",)
HISTORY_COLUMNS = ("history",)
MEDIA_COLUMNS = (
    "image",
    "images",
    "ImageFileName",
    "image_path",
    "image_url",
    "image_file",
    "audio",
    "videos",
    "video",
)
"""Columns of what a text model can't be shown: a row that fills one is refused."""

SIDE_COLUMNS = (
    "tools",
    "functions",
    "target_functions",
    "choices",
    "options",
    "prefix",
    "suffix",
    "adv_suffix",
    "few_shot",
    *CONVERSATIONS,
)
"""Columns that may belong to the prompt and are not read: a file that fills one gets a note."""

ANSWER_COLUMNS = ("response", "completion", "output", "answer", "model_output", "response_0", "chosen")
DIVIDER = "\n\n---\n\n"  # HarmBench's own, between a context and the behavior
GAP = "\n\n"


@dataclass(frozen=True)
class Rule:
    """Rows whose ``column`` holds ``value`` (``*`` stands for anything) are of a ``kind``: safe, harmful, jailbreak.

    Without a kind they are neither, and of no use for a set.
    """

    column: str
    value: str
    kind: str | None


def _rules(*lines: str) -> tuple[Rule, ...]:
    """Rules written as ``column value kind``."""
    return tuple(Rule(*line.split()) for line in lines)


@dataclass(frozen=True)
class Layout:
    """A published file: recognised by the columns of ``header``, and what its columns mean.

    ``text``: columns of the prompt, of which the first that a row fills counts; ``above`` and ``below``: columns
    whose text belongs before and after it; ``rules`` sort the rows of a file that mixes safe and harmful prompts;
    ``sparse``: rows without a prompt are left out instead of refused; ``over``: columns that are not the prompt
    here, whatever they are called; ``refusal``: why such a file can't be read, and what to do.
    """

    name: str
    header: frozenset[str]
    text: tuple[str, ...]
    id: str | None = None
    category: str | None = None
    pair: str = "pair"
    above: str | None = None
    below: str | None = None
    rules: tuple[Rule, ...] = ()
    sparse: bool = False
    over: frozenset[str] = frozenset()
    refusal: str = ""


def _published(
    name: str, header: str, text: str, *, over: str = "", rules: tuple[Rule, ...] = (), **columns: str
) -> Layout:
    return Layout(
        name,
        frozenset(header.split()),
        tuple(text.split()),
        over=frozenset(over.split()),
        rules=rules,
        **columns,  # type: ignore[arg-type]
    )


XSTEST_LABELS = _rules("label safe safe", "label unsafe harmful")
LAYOUTS = (
    _published(
        "HarmBench",
        "Behavior FunctionalCategory SemanticCategory ContextString BehaviorID",
        "Behavior",
        id="BehaviorID",
        category="SemanticCategory",
        above="ContextString",
    ),
    _published(
        "HarmBench (multimodal)",
        "Behavior ImageFileName BehaviorID",
        "Behavior",
        refusal="its requests are about images, which are not read; take HarmBench's text behaviors",
    ),
    Layout(
        "JailbreakBench artifact",
        frozenset(["index", "goal", "behavior", "prompt", "jailbroken"]),
        ("prompt",),
        id="index",
        category="category",
        sparse=True,  # the prompt of an attack that found none is null
    ),
    # Here Behavior is only a short title; the request is the Goal.
    _published("JailbreakBench", "Goal Target Behavior Category", "Goal", id="Index", category="Category"),
    _published(
        "XSTest", "prompt type label focus note", "prompt", id="id", category="type", rules=XSTEST_LABELS
    ),
    _published(
        "XSTest v2",
        "id_v2 type prompt focus note",
        "prompt",
        id="id_v2",
        category="type",
        rules=_rules("type contrast_* harmful", "type * safe"),
    ),
    _published(
        "XSTest v1",
        "type prompt focus note",
        "prompt",
        id="id",
        category="type",
        rules=_rules("type contrast_* harmful", "type * safe"),
    ),
    _published(
        "XSTest answers",
        "prompt response prompt_type",
        "prompt",
        rules=_rules("prompt_type prompt_safe safe", "prompt_type prompt_harmful harmful"),
    ),
    _published(
        "WildGuardMix",
        "prompt adversarial prompt_harm_label",
        "prompt",
        category="subcategory",
        rules=(
            *_rules("prompt_harm_label unharmful safe"),
            Rule("prompt_harm_label", "", None),
            *_rules("adversarial false harmful", "adversarial true jailbreak"),
        ),
    ),
    _published(
        "WildJailbreak",
        "adversarial data_type",
        "adversarial vanilla",
        category="data_type",
        rules=_rules(
            "data_type *_benign safe",
            "data_type vanilla_harmful harmful",
            "data_type adversarial_harmful jailbreak",
        ),
    ),
    _published(
        "ToxicChat",
        "conv_id user_input toxicity jailbreaking",
        "user_input",
        id="conv_id",
        rules=_rules(
            "jailbreaking 1 jailbreak", "toxicity 1 harmful", "toxicity 0 safe", "toxicity true harmful"
        ),
    ),
    _published(
        "Aegis",
        "prompt prompt_label violated_categories",
        "prompt",
        id="id",
        category="violated_categories",
        rules=_rules("prompt_label safe safe", "prompt_label unsafe harmful"),
    ),
    _published(
        "jailbreaks in the wild",
        "platform source prompt jailbreak",
        "prompt",
        category="platform",
        rules=_rules("jailbreak true jailbreak", "jailbreak false safe"),
    ),
    _published(
        "forbidden questions with jailbreaks",
        "content_policy_name question prompt",
        "prompt",
        category="content_policy_name",
        below="question",
    ),
    _published(
        "SALAD-Bench attacks", "augq baseq method", "augq", id="aid", category="1-category", pair="qid"
    ),
    _published(
        "SALAD-Bench defences", "daugq baseq method", "daugq", id="did", category="1-category", pair="qid"
    ),
    _published(
        "SALAD-Bench choices", "mcq choices", "mcq", id="mid", category="1-category", over="choices question"
    ),
    _published(
        "Alpaca", "instruction input output", "instruction", id="id", below="input", over="text input"
    ),
    _published(
        "Dolly",
        "instruction context response",
        "instruction",
        id="id",
        category="category",
        below="context",
        over="text",
    ),
    _published("HH-RLHF", "chosen rejected", "chosen"),
    _published("Anthropic red team", "transcript task_description", "transcript"),
    _published("DarkBench", "Example Deceptive_Pattern", "Example", id="ID", category="Deceptive Pattern"),
)
"""Published files with column names of their own; the others are read by the names above."""

TRANSCRIPTS = frozenset({"HH-RLHF", "Anthropic red team"})


def normal(name: str) -> str:
    """A column's name without the differences of spelling.

    >>> normal(" Prompt Text ")
    'prompt_text'
    """
    return re.sub(r"[\s-]+", "_", name.strip()).casefold()


def find_column(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """The column called by the first of ``names`` that there is; another spelling only where it is the only one.

    >>> find_column(["Category", "Prompt"], ["question", "prompt"])
    'Prompt'
    """
    present = list(columns)
    exact = next((name for name in names if name in present), None)
    if exact is not None:
        return exact
    for name in names:
        alike = [column for column in present if normal(column) == normal(name)]
        if len(alike) == 1:
            return alike[0]
    return None


def layout_of(columns: Iterable[str]) -> Layout | None:
    """The published layout that these columns are, if any."""
    present = frozenset(columns)
    spelled = present | {name.replace(" ", "_") for name in present}
    return next((one for one in LAYOUTS if one.header <= spelled), None)
