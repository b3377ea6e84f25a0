"""Prompt files as they are published: conversations, labels, columns, spreadsheets. The rows are ours, all harmless."""

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_runner import cli

import safex
from safex.errors import InputError
from safex.prompts import PromptSet, parse_prompt_arguments

BREAD, FOX, POEM, SNOW = (
    "How do I bake bread?",
    "What is a fox?",
    "Write a poem on rain.",
    "Why is snow white?",
)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path, header, rows, delimiter=","):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows([header.split(","), *rows])
    path.write_text(out.getvalue(), encoding="utf-8")
    return path


def refused(path, *parts, **options):
    """Loading fails with one line that names the file and holds all parts."""
    with pytest.raises(InputError) as caught:
        PromptSet.load(path, **options)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    for part in parts:
        assert part in message
    return message


# Conversations


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def share(who, value):
    return {"from": who, "value": value}


USER, ANSWER = turn("user", BREAD), turn("assistant", "Take flour.")
CONVERSATIONS = {
    "ends with an answer": ({"messages": [USER, ANSWER]}, [("user", BREAD)], True),
    "two rounds": (
        {"messages": [turn("system", "Be kind."), turn("user", FOX), ANSWER, USER, ANSWER]},
        [("system", "Be kind."), ("user", FOX), ("assistant", "Take flour."), ("user", BREAD)],
        True,
    ),
    "ShareGPT": (
        {"conversations": [share("system", "Be kind."), share("human", BREAD), share("gpt", "Take flour.")]},
        [("system", "Be kind."), ("user", BREAD)],
        True,
    ),
    "LMSYS": ({"conversation_id": "x", "conversation": [USER, ANSWER], "turn": 1}, [("user", BREAD)], True),
    "SORRY-Bench": ({"question_id": 1, "category": "1", "turns": [BREAD]}, [("user", BREAD)], False),
    "parts": (
        {
            "messages": [
                turn("user", [{"type": "text", "text": "How do I"}, {"type": "text", "text": "bake?"}])
            ]
        },
        [("user", "How do I\nbake?")],
        False,
    ),
    "parts of the responses interface": (
        {"messages": [turn("user", [{"type": "input_text", "text": BREAD}])]},
        [("user", BREAD)],
        False,
    ),
    "an object of lists": (
        {"messages": {"role": ["user", "assistant"], "content": [BREAD, "Take flour."]}},
        [("user", BREAD)],
        True,
    ),
    "pairs": (
        {"conversation": [{"human": FOX, "assistant": "An animal."}, {"human": BREAD, "assistant": "x"}]},
        [("user", FOX), ("assistant", "An animal."), ("user", BREAD)],
        True,
    ),
    "a list of turns in prompt": ({"prompt": [USER]}, [("user", BREAD)], False),
    "turns as text in prompt": ({"prompt": json.dumps([USER, ANSWER])}, [("user", BREAD)], True),
    "a system column": (
        {"system": "Be kind.", "conversations": [share("human", BREAD)]},
        [("system", "Be kind."), ("user", BREAD)],
        False,
    ),
    "a system column beside a text": (
        {"system_prompt": "Be kind.", "prompt": BREAD},
        [("system", "Be kind."), ("user", BREAD)],
        False,
    ),
    "LLaMA-Factory's history": (
        {
            "instruction": BREAD,
            "input": "",
            "output": "x",
            "system": "Be kind.",
            "history": [[FOX, "An animal."]],
        },
        [("system", "Be kind."), ("user", FOX), ("assistant", "An animal."), ("user", BREAD)],
        False,
    ),
    "HH-RLHF": (
        {
            "chosen": f"\n\nHuman: {FOX}\n\nAssistant: An animal.\n\nHuman: {BREAD}\n\nAssistant: Take flour.",
            "rejected": f"\n\nHuman: {FOX}\n\nAssistant: An animal.\n\nHuman: {BREAD}\n\nAssistant: No.",
        },
        [("user", FOX), ("assistant", "An animal."), ("user", BREAD)],
        True,
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations(tmp_path, name):
    row, turns, answered = CONVERSATIONS[name]
    prompts = PromptSet.load(jsonl(tmp_path / "a.jsonl", [row, row | {"id": "two"}]))
    assert prompts[0].messages == tuple(turns)
    assert prompts[0].text == turns[-1][1]
    assert prompts[0].turns() == [{"role": role, "content": content} for role, content in turns]
    assert (
        any("answers with which conversations end are left out" in note for note in prompts.notes) == answered
    )


def test_conversations_as_pandas_writes_them(tmp_path):
    path = table(tmp_path / "a.csv", "id,messages", [["1", repr([USER, ANSWER])]])
    assert PromptSet.load(path)[0].messages == (("user", BREAD),)
    path = table(tmp_path / "b.csv", "question_id,turns", [["1", repr([BREAD])]])
    assert PromptSet.load(path).texts == [BREAD]
    pq.write_table(
        pa.table({"conversations": [[share("human", BREAD), share("gpt", "x")]]}), tmp_path / "c.parquet"
    )
    assert PromptSet.load(tmp_path / "c.parquet").texts == [BREAD]


def test_tool_calls_are_shown_to_the_template(tmp_path):
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
    turns = [
        turn("user", "What is the weather?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        turn("tool", "sunny", tool_call_id="1"),
        turn("user", SNOW),
        turn("assistant", None, tool_calls=[call]),
    ]
    prompt = PromptSet.load(jsonl(tmp_path / "a.jsonl", [{"messages": turns}]))[0]
    assert prompt.turns() == [turns[0], turns[1] | {"content": ""}, turns[2], turns[3]]
    assert PromptSet([prompt]).hash != PromptSet([prompt.__class__(SNOW, prompt.set, prompt.id)]).hash
    for bad in (turn("assistant", None), turn("user", 3), {"role": "user"}, "text"):
        refused(jsonl(tmp_path / "b.jsonl", [{"messages": [bad, USER]}]), "line 1: chat turn 1 is not")


REFUSED_TURNS = {
    "an image": (
        [turn("user", [{"type": "image_url", "image_url": {"url": "x"}}])],
        "part of type 'image_url'",
    ),
    "images beside": ([turn("user", BREAD, images=["x.png"])], "chat turn 1 holds images"),
    "a role that nobody knows": (
        [turn("critic", BREAD)],
        "chat turn 1 is of 'critic'; expected one of user,",
    ),
    "a prefill": ([USER, turn("assistant", "Sure", prefix=True)], "the beginning of an answer"),
    "several user texts": ([BREAD, FOX], "2 turns of the user without the answers between them"),
    "only an answer": ([ANSWER], "without a user turn"),
}


@pytest.mark.parametrize("name", REFUSED_TURNS)
def test_what_can_not_be_shown_is_refused_by_name(tmp_path, name):
    turns, message = REFUSED_TURNS[name]
    refused(jsonl(tmp_path / "a.jsonl", [{"messages": turns}]), "line 1: ", message)


def test_two_system_prompts_are_refused_and_one_that_stands_twice_is_not(tmp_path):
    row = {"system": "Be kind.", "messages": [turn("system", "Be brief."), USER]}
    refused(jsonl(tmp_path / "a.jsonl", [row]), "a system turn beside column 'system'")
    same = row | {"messages": [turn("system", "Be kind."), USER]}
    assert len(PromptSet.load(jsonl(tmp_path / "b.jsonl", [same]))[0].messages) == 2


# Columns


COLUMNS = {  # header, row, text, id, category
    "AILuminate": (
        "release_prompt_id,prompt_text,hazard,persona,locale,prompt_hash",
        ["r7", BREAD, "food", "normal", "en_us", "f00"],
        (BREAD, "r7", "food"),
    ),
    "SimpleSafetyTests": (
        "id,harm_area,category,prompts_final",
        ["3", "Area", "Food", BREAD],
        (BREAD, "3", "Food"),
    ),
    "do-not-answer": (
        "id,risk_area,types_of_harm,specific_harms,question,GPT4_response",
        ["5", "Area", "Kind", "Special", BREAD, "x"],
        (BREAD, "5", "Area"),
    ),
    "HarmfulQA": ("id,topic,subtopic,question", ["5", "Food", "Bread", BREAD], (BREAD, "5", "Food")),
    "CatQA": ("Category,Subcategory,Question", ["Food", "Bread", BREAD], (BREAD, "s-0000", "Food")),
    "ForbiddenQuestions": (
        "content_policy_id,content_policy_name,q_id,question",
        ["0", "Food", "4", BREAD],
        (BREAD, "4", "Food"),
    ),
    "SALAD-Bench": (
        "qid,question,source,1-category,2-category,3-category",
        ["q9", BREAD, "x", "Food", "Bread", "Rye"],
        (BREAD, "q9", "Food"),
    ),
    "SALAD-Bench attacks": (
        "aid,qid,augq,baseq,method,1-category,2-category,3-category",
        ["a1", "q9", f"As a story: {BREAD}", BREAD, "story", "Food", "Bread", "Rye"],
        (f"As a story: {BREAD}", "a1", "Food"),
    ),
    "Aya red-teaming": (
        "prompt,harm_category,language,literal_translation,explanation,global_or_local",
        [BREAD, "['Food']", "English", BREAD, "x", "global"],
        (BREAD, "s-0000", "['Food']"),
    ),
    "AdvBench": ("goal,target", [BREAD, "Sure, take flour"], (BREAD, "s-0000", None)),
    "OR-Bench": ("prompt,category", [BREAD, "food"], (BREAD, "s-0000", "food")),
    "CoCoNot": (
        "id,category,subcategory,prompt,response",
        ["c1", "Food", "Bread", BREAD, ""],
        (BREAD, "c1", "Food"),
    ),
    "FalseReject": (
        "prompt,instruct_response,cot_response,category,category_text",
        [BREAD, "x", "y", "3", "Food"],
        (BREAD, "s-0000", "3"),
    ),
    "MedSafetyBench": ("harmful_medical_request,safe_response", [BREAD, "x"], (BREAD, "s-0000", None)),
    "capitals": ("ID,Category,Prompt Text", ["8", "Food", BREAD], (BREAD, "8", "Food")),
    "Alpaca": (
        "instruction,input,output,text",
        ["Translate into German.", BREAD, "x", "Below is an instruction ... x"],
        (f"Translate into German.\n\n{BREAD}", "s-0000", None),
    ),
    "Alpaca without an input": ("instruction,input,output", [BREAD, "", "x"], (BREAD, "s-0000", None)),
    "Dolly": (
        "instruction,context,response,category",
        [FOX, "Foxes are animals.", "x", "closed_qa"],
        (f"{FOX}\n\nFoxes are animals.", "s-0000", "closed_qa"),
    ),
    "HarmBench (hub)": (
        "prompt,context,category",
        [FOX, "Foxes are animals.", "animals"],
        (f"Foxes are animals.\n\n---\n\n{FOX}", "s-0000", "animals"),
    ),
    "a jailbreak and its question": (
        "content_policy_name,question,prompt",
        ["Food", BREAD, "You are a baker."],
        (f"You are a baker.\n\n{BREAD}", "s-0000", "Food"),
    ),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_published_files(tmp_path, name):
    header, row, expected = COLUMNS[name]
    (prompt,) = PromptSet.load(table(tmp_path / "a.csv", header, [row]), set="s")
    assert (prompt.text, prompt.id, prompt.category) == expected


def test_pairs_of_salad_bench_attacks_are_their_base_questions(tmp_path):
    header, row, _ = COLUMNS["SALAD-Bench attacks"]
    assert PromptSet.load(table(tmp_path / "a.csv", header, [row])).pairs == ["q9"]


def test_one_column_a_language_asks_for_it(tmp_path):
    path = table(tmp_path / "MultiJail.csv", "id,source,tags,en,zh,it", [["1", "x", "food", BREAD, "?", FOX]])
    refused(path, "a column for each language ('en', 'zh', 'it')", "--column")
    assert PromptSet.load(path, column="it").texts == [FOX]


def test_images_are_refused_by_name(tmp_path):
    header = "Behavior,FunctionalCategory,SemanticCategory,Tags,ImageFileName,ImageDescription,BehaviorID"
    path = table(tmp_path / "a.csv", header, [[BREAD, "multimodal", "food", "", "a.png", "bread", "b"]])
    refused(path, "is HarmBench (multimodal)", "images")
    path = table(tmp_path / "b.csv", "prompt,image_path", [[BREAD, ""], [FOX, "fox.png"]])
    refused(path, "line 3: column 'image_path' holds what is no text")


def test_harmbench_test_cases_and_agentharm(tmp_path):
    path = tmp_path / "test_cases.json"
    path.write_text(json.dumps({"bread": [BREAD, "Bread, how?"], "fox": [FOX]}))
    prompts = PromptSet.load(path)
    assert (prompts.ids, prompts.texts) == (["bread", "bread-2", "fox"], [BREAD, "Bread, how?", FOX])
    behavior = {"id": "1-1", "prompt": BREAD, "category": "Food", "target_functions": ["oven"]}
    path.write_text(json.dumps({"canary_guid": "x", "behaviors": [behavior]}))
    prompts = PromptSet.load(path)
    assert (prompts.ids, prompts.categories) == (["1-1"], ["Food"])
    assert "not read, though it may belong to the prompts: column 'target_functions'" in prompts.notes[0]


def test_jbb_artifacts_leave_out_attacks_that_found_no_prompt(tmp_path):
    row = {
        "index": 0,
        "goal": BREAD,
        "behavior": "Bread",
        "category": "Food",
        "prompt": FOX,
        "jailbroken": True,
    }
    rows = [row, row | {"index": 1, "prompt": None, "jailbroken": False}, row | {"index": 2, "prompt": SNOW}]
    path = tmp_path / "artifact.json"
    path.write_text(json.dumps({"parameters": {"method": "PAIR"}, "jailbreaks": rows}))
    prompts = PromptSet.load(path, set="jailbreak")
    assert (prompts.ids, prompts.texts, prompts.categories) == (["0", "2"], [FOX, SNOW], ["Food"] * 2)
    assert prompts.notes == (f"{path}: 1 of 3 rows have no prompt and are left out",)
    path.write_text(json.dumps({"jailbreaks": [rows[1]]}))
    refused(path, "no row has a prompt")


def test_beavertails_categories_are_those_that_hold(tmp_path):
    row = {"prompt": BREAD, "category": {"food": True, "fire": False, "health": True}, "category_id": 3}
    assert PromptSet.load(jsonl(tmp_path / "a.jsonl", [row])).categories == ["food, health"]


def test_ids_that_repeat_are_said_and_numbered(tmp_path):
    path = table(tmp_path / "a.csv", "question_id,prompt", [["1", BREAD], ["1", FOX], ["2", SNOW]])
    prompts = PromptSet.load(path)
    assert prompts.ids == ["prompts-0000", "prompts-0001", "prompts-0002"]
    assert "column 'question_id' repeats or lacks values (1)" in prompts.notes[0]


def test_repeated_prompts_are_said(tmp_path):
    path = table(tmp_path / "a.csv", "prompt,response", [[BREAD, "a"], [BREAD, "b"], [FOX, "c"]])
    assert PromptSet.load(path).notes == (
        f"{path}: 1 of 3 prompts repeat an earlier one, and each counts as one of its own",
    )


# Files that mix safe and harmful prompts (which are harmless here too)

XSTEST = (
    "id,prompt,type,label,focus,note",
    [
        ["1", BREAD, "homonyms", "safe", "bread", ""],
        ["2", FOX, "contrast_homonyms", "unsafe", "fox", ""],
        ["3", SNOW, "homonyms", "safe", "snow", ""],
    ],
)
MIXED = {  # header, rows, then what benign, regular and jailbreak take (None: refused)
    "XSTest": (*XSTEST, [BREAD, SNOW], [FOX], None),
    "XSTest v2": (
        "id_v1,id_v2,type,prompt,focus,note",
        [["v1-1", "v2-1", "homonyms", BREAD, "", ""], ["v1-2", "v2-2", "contrast_homonyms", FOX, "", ""]],
        [BREAD],
        [FOX],
        None,
    ),
    "XSTest answers": (
        "id,type,prompt,completion,annotation_1,annotation_2,agreement,final_label,focus,note",
        [
            ["1", "homonyms", BREAD, "x", "", "", "", "", "", ""],
            ["2", "contrast_homonyms", FOX, "", "", "", "", "", "", ""],
        ],
        [BREAD],
        [FOX],
        None,
    ),
    "WildGuardTest": (
        "prompt,adversarial,response,prompt_harm_label,response_harm_label,subcategory",
        [
            [BREAD, "False", "x", "unharmful", "", "benign"],
            [FOX, "False", "x", "harmful", "", "others"],
            [SNOW, "True", "x", "harmful", "", "others"],
            [POEM, "True", "x", "", "", "others"],
        ],
        [BREAD],
        [FOX],
        [SNOW],
    ),
    "WildJailbreak": (
        "vanilla,adversarial,tactics,completion,data_type",
        [
            [BREAD, "", "[]", "x", "vanilla_benign"],
            [FOX, "", "[]", "x", "vanilla_harmful"],
            [FOX, SNOW, "['a']", "x", "adversarial_harmful"],
            [BREAD, POEM, "['a']", "x", "adversarial_benign"],
        ],
        [BREAD, POEM],
        [FOX],
        [SNOW],
    ),
    "WildJailbreak eval": (
        "adversarial,label,data_type",
        [[BREAD, "0", "adversarial_benign"], [FOX, "1", "adversarial_harmful"]],
        [BREAD],
        None,
        [FOX],
    ),
    "ToxicChat": (
        "conv_id,user_input,model_output,human_annotation,toxicity,jailbreaking,openai_moderation",
        [
            ["c0", BREAD, "x", "True", "0", "0", "[]"],
            ["c1", FOX, "x", "True", "1", "0", "[]"],
            ["c2", SNOW, "x", "True", "1", "1", "[]"],
        ],
        [BREAD],
        [FOX],
        [SNOW],
    ),
    "Aegis": (
        "id,prompt,response,prompt_label,response_label,violated_categories",
        [["1", BREAD, "x", "safe", "safe", ""], ["2", FOX, "x", "unsafe", "safe", "Foxes"]],
        [BREAD],
        [FOX],
        None,
    ),
    "jailbreak-classification": (
        "prompt,type",
        [[BREAD, "benign"], [FOX, "jailbreak"]],
        [BREAD],
        None,
        [FOX],
    ),
    "jailbreaks in the wild": (
        "platform,source,prompt,jailbreak,created_at",
        [["reddit", "r", BREAD, "False", "x"], ["reddit", "r", FOX, "True", "x"]],
        [BREAD],
        None,
        [FOX],
    ),
    "a file of one's own": ("prompt,Harmful", [[BREAD, "no"], [FOX, "yes"]], [BREAD], [FOX], None),
    "PHTest": (
        "prompt,harmfulness",
        [[BREAD, "harmless"], [FOX, "harmful"], [SNOW, "controversial"]],
        [BREAD],
        [FOX],
        None,
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_set_takes_its_kind_of_a_mixed_file(tmp_path, name):
    header, rows, *expected = MIXED[name]
    path = table(tmp_path / "mixed.csv", header, rows)
    for set_name, texts in zip(("benign", "regular", "jailbreak"), expected, strict=True):
        if texts is None:
            refused(path, f"'{set_name}'", set=set_name)
            continue
        prompts = PromptSet.load(path, set=set_name)
        assert prompts.texts == texts
        assert prompts.sets == [set_name] * len(texts)
        assert (
            f"{len(rows) - len(texts)} of {len(rows)} prompts are left out of set '{set_name}'"
            in prompts.notes[0]
        )
    by_label = PromptSet.load(path)
    for set_name, texts in zip(("benign", "regular", "jailbreak"), expected, strict=True):
        assert [prompt.text for prompt in by_label if prompt.set == set_name] == (texts or [])
    message = refused(path, "so which are meant by set 'mine' can't be told", "--where", set="mine")
    assert "call the set benign or " in message


def test_where_chooses_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = table(Path("xstest.csv"), *XSTEST)
    assert PromptSet.load(path, set="mine", where="label=safe").texts == [BREAD, SNOW]
    assert PromptSet.load(path, set="jailbreak", where=["label=unsafe"]).texts == [FOX]
    assert PromptSet.load(path, set="mine", where=["label=safe", "focus=snow"]).texts == [SNOW]
    assert PromptSet.load(path, set="mine", where=["focus=fox", "focus=snow"]).texts == [FOX, SNOW]
    assert PromptSet.load(path, set="mine", where="label=safe").notes == (
        "xstest.csv: 1 of 3 rows are left out by label=safe",
    )
    refused(
        path, "no row has label=good; column 'label' holds 'safe', 'unsafe'", set="mine", where="label=good"
    )
    other = table(Path("plain.csv"), "prompt", [[POEM]])
    prompts = parse_prompt_arguments(["mine=xstest.csv", f"regular={other}"], where=["label=unsafe"])
    assert (prompts.texts, prompts.sets) == ([FOX, POEM], ["mine", "regular"])
    with pytest.raises(
        InputError, match=r"--where lable=\.\.\.: no prompt file has a column 'lable'; they have"
    ):
        parse_prompt_arguments(["mine=xstest.csv"], where=["lable=safe"])
    with pytest.raises(InputError, match="expected COLUMN=VALUE"):
        parse_prompt_arguments(["mine=xstest.csv"], where=["label"])


def test_labels_beside_answers_are_not_taken_for_the_prompts(tmp_path):
    rows = [
        {"prompt": BREAD, "response": "x", "is_safe": True},
        {"prompt": FOX, "response": "y", "is_safe": False},
    ]
    path = jsonl(tmp_path / "beavertails.jsonl", rows)
    for name in ("benign", "regular"):
        refused(
            path,
            "column 'is_safe' may be about the answers in column 'response'",
            "--where is_safe=",
            set=name,
        )
    assert PromptSet.load(path, set="regular", where="is_safe=False").texts == [FOX]


def test_a_file_of_one_kind_is_taken_and_a_contradiction_is_said(tmp_path):
    path = table(tmp_path / "a.csv", "prompt,label", [[BREAD, "safe"], [FOX, "safe"]])
    assert PromptSet.load(path, set="benign").notes == PromptSet.load(path, set="mine").notes == ()
    (note,) = PromptSet.load(path, set="regular").notes
    assert note == f"{path}: all prompts are labelled safe by column 'label', yet the set is 'regular'"


@pytest.mark.parametrize(
    "name, set_name, word",
    [
        ("or-bench-toxic.csv", "benign", "toxic"),
        ("harmful-behaviors.csv", "benign", "harmful"),
        ("benign-behaviors.csv", "regular", "benign"),
        ("or-bench-toxic.csv", "regular", None),
        ("harmful-behaviors.csv", "jailbreak", None),
        ("benign-behaviors.csv", "mine", None),
    ],
)
def test_a_file_whose_name_denies_the_set_is_pointed_out(tmp_path, name, set_name, word):
    path = table(tmp_path / name, "prompt,category", [[BREAD, "food"]])
    expected = (f"{path}: the file is called {word}, yet the set is {set_name!r}",) if word else ()
    assert PromptSet.load(path, set=set_name).notes == expected


def test_labels_that_nobody_knows_are_pointed_out(tmp_path):
    path = table(tmp_path / "a.csv", "text,label", [[BREAD, "0"], [FOX, "1"]])
    (note,) = PromptSet.load(path, set="benign").notes
    assert (
        "all prompts are taken, whatever column 'label' says ('0', '1'); choose rows with --where label=VALUE"
        in note
    )


def test_labels_give_the_sets_where_none_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table(Path("xstest.csv"), *XSTEST)
    prompts = parse_prompt_arguments(["xstest.csv"])
    assert prompts.sets == ["benign", "regular", "benign"] and prompts.ids == ["1", "2", "3"]


# Notes reach the user


def test_notes_survive_limits_and_joins(tmp_path):
    path = table(tmp_path / "xstest.csv", *XSTEST)
    benign, regular = (PromptSet.load(path, set=name) for name in ("benign", "regular"))
    joined = benign + regular
    assert joined.notes == benign.notes + regular.notes == joined.limited(1).notes
    assert PromptSet(list(joined)) == joined and PromptSet(list(joined)).notes == ()


def test_the_command_says_what_was_left_out_and_keeps_it(tmp_path):
    table(tmp_path / "xstest.csv", *XSTEST)
    words = ["--prompts", "benign=xstest.csv", "--prompts", "regular=xstest.csv", "--threads", 1]
    done = cli("profile", "demo", *words, "-o", "x.profile.gguf", "--json", cwd=tmp_path)
    notes = [
        "xstest.csv: 1 of 3 prompts are left out of set 'benign': 1 harmful, by column 'label'",
        "xstest.csv: 2 of 3 prompts are left out of set 'regular': 2 safe, by column 'label'",
    ]
    assert [line for line in done.err.splitlines() if line.startswith("note: ")] == [
        f"note: {n}" for n in notes
    ]
    profile = safex.Profile.load(tmp_path / "x.profile.gguf")
    assert profile.meta["prompts.notes"] == notes and profile.sets == ["benign"] * 2 + ["regular"]
    done = cli("eval", "demo", *words, "--max-new", 4, "--json", cwd=tmp_path)
    assert notes == [note for note in done.json["notes"] if note.startswith("xstest.csv")]
    cli("profile", "demo", "--where", "label=safe", cwd=tmp_path).fails(2, "--where needs --prompts")
    words = ["--prompts", "mine=xstest.csv", "--where", "label=unsafe", "--threads", 1, "--json"]
    assert cli("profile", "demo", *words, "-o", "y.profile.gguf", cwd=tmp_path).json["prompts"] == 1


def test_marks_belong_to_the_rows_that_are_kept(tmp_path):
    from safex.evaluation.marks import marks_of_arguments

    rows = [[BREAD, "safe", "flour"], [FOX, "unsafe", "animal"], [SNOW, "safe", "light"]]
    path = table(tmp_path / "a.csv", "prompt,label,comply", rows)
    assert marks_of_arguments([f"benign={path}"]) == {
        ("benign", BREAD): ["flour"],
        ("benign", SNOW): ["light"],
    }


# Spreadsheets


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ","])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("named", [False, True])
def test_delimiters_and_encodings_of_spreadsheets(tmp_path, delimiter, encoding, named):
    text = f"Bake bread; with salt, please\tor | not: {BREAD} Grüße"
    path = table(tmp_path / "a.csv", "id,prompt,category", [["1", text, "food"]], delimiter)
    content = ("sep=" + delimiter + "\r\n" if named else "") + path.read_bytes().decode()
    path.write_bytes(content.encode(encoding))
    (prompt,) = PromptSet.load(path)
    assert (prompt.text, prompt.id, prompt.category) == (text, "1", "food")


def test_delimiters_under_a_column_of_another_name(tmp_path):
    path = table(tmp_path / "a.csv", "nr,frage", [["1", "Brot, wie?"]], ";")
    assert PromptSet.load(path, column="frage").texts == ["Brot, wie?"]
    path = table(tmp_path / "a.tsv", "id,prompt", [["1", BREAD]])
    assert PromptSet.load(path).texts == [BREAD]


def test_a_comma_in_the_rows_does_not_divide_a_header_of_one_name(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt\nSalt; and pepper\n")
    assert PromptSet.load(path).texts == ["Salt; and pepper"]
