"""Prompts: formats, published headers, ids, hash, shipped sets, SET=FILE, and one clear line per fault."""

import csv
import gzip
import hashlib
import io
import json
import re
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safex.errors import InputError
from safex.prompts import SETS, Prompt, PromptSet, parse_prompt_arguments

TEXTS = ["How do I tie a knot?", 'Say "hello, you", please.', "Zwei Füchse\u2028und ein Dachs"]
DATA = Path(__file__).parents[1] / "safex" / "data" / "prompts"


def delimited(columns, rows, delimiter=","):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([columns, *rows])
    return out.getvalue()


def write(path, content):
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def error(path, **options):
    """The message of the InputError that loading gives: one line that names the file."""
    with pytest.raises(InputError) as caught:
        PromptSet.load(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# Formats

FORMATS = {
    "txt": "\n".join(TEXTS),
    "csv": delimited(["prompt"], [[text] for text in TEXTS]),
    "tsv": delimited(["prompt"], [[text] for text in TEXTS], "\t"),
    "json": json.dumps([{"prompt": text} for text in TEXTS], ensure_ascii=False),
    "jsonl": "\n".join(json.dumps({"prompt": text}, ensure_ascii=False) for text in TEXTS),
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("extension", FORMATS)
def test_text_formats(tmp_path, extension, bom, suffix):
    path = write(tmp_path / f"file.{extension}{suffix}", bom + FORMATS[extension])
    prompts = PromptSet.load(path, set="benign")
    assert prompts.texts == TEXTS
    assert prompts.sets == ["benign"] * 3
    assert prompts.ids == ["benign-0000", "benign-0001", "benign-0002"]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_txt_skips_blank_lines(tmp_path, line_end):
    path = write(tmp_path / "a.txt", line_end.join(["", " one ", "", "\t", "two", "three"]))
    assert PromptSet.load(path).texts == ["one", "two", "three"]


def test_extension_in_capitals(tmp_path):
    assert PromptSet.load(write(tmp_path / "A.TXT", "one")).texts == ["one"]


@pytest.mark.parametrize(
    "data",
    [
        ["a", "b"],
        [{"prompt": "a"}, {"prompt": "b"}],
        {"data": ["a", "b"]},
        {"version": 2, "data": [{"prompt": "a"}, {"prompt": "b"}]},
        {"prompt": ["a", "b"]},
        {"prompt": ["a", "b"], "id": [7, 8]},
        {"prompt": {"0": "a", "1": "b"}, "id": {"0": "x", "1": "y"}},
        {"prompt": [[{"role": "user", "content": text}] for text in "ab"]},
    ],
)
def test_json_shapes(tmp_path, data):
    assert PromptSet.load(write(tmp_path / "a.json", json.dumps(data))).texts == ["a", "b"]


def test_jsonl_of_strings(tmp_path):
    assert PromptSet.load(write(tmp_path / "a.jsonl", '"a"\n\n"b"\n')).texts == ["a", "b"]


def test_csv_fields_with_line_breaks_and_blank_lines(tmp_path):
    path = write(tmp_path / "a.csv", 'id,prompt\r\n1,"two\r\nlines, one prompt"\r\n\r\n,\r\n2,plain\r\n')
    prompts = PromptSet.load(path)
    assert prompts.texts == ["two\r\nlines, one prompt", "plain"]
    assert prompts.ids == ["1", "2"]


def test_csv_field_longer_than_the_csv_module_allows(tmp_path):
    before = csv.field_size_limit()
    text = "word " * 40_000
    assert PromptSet.load(write(tmp_path / "a.csv", f'prompt\n"{text}"\n')).texts == [text]
    assert csv.field_size_limit() == before


def test_parquet(tmp_path):
    turns = [[{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}] for text in TEXTS]
    pq.write_table(pa.table({"prompt": TEXTS, "pair": [1.0, None, 3.0]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"messages": turns}), tmp_path / "b.parquet")
    plain, chat = PromptSet.load(tmp_path / "a.parquet"), PromptSet.load(tmp_path / "b.parquet")
    assert plain.texts == chat.texts == TEXTS
    assert plain.pairs == ["1", None, "3"]
    assert plain.sets == ["prompts"] * 3
    assert chat[0].messages == (("system", "Be kind."), ("user", TEXTS[0]))


def test_pyarrow_is_only_imported_for_parquet(tmp_path):
    path = write(tmp_path / "a.csv", "prompt\none\n")
    load = f"from safex.prompts import PromptSet; PromptSet.load({str(path)!r})"
    code = f"import sys; {load}; print('pyarrow' in sys.modules)"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# Columns

ORDER = ["prompt", "forbidden_prompt", "Behavior", "Goal", "goal"]
ORDER += ["question", "text", "instruction", "messages"]


@pytest.mark.parametrize("first", range(len(ORDER)))
def test_column_order(tmp_path, first):
    columns = [*reversed(ORDER[first:]), "id", "note"]
    row = {name: f"text of {name}" for name in columns}
    row["messages"] = json.dumps([{"role": "user", "content": "text of messages"}])
    path = write(tmp_path / "a.csv", delimited(columns, [[row[name] for name in columns]]))
    assert PromptSet.load(path).texts == [f"text of {ORDER[first]}"]


def test_explicit_column_and_optional_columns(tmp_path):
    rows = [["p1", "first", "q1", "A", "benign", "x"], ["p2", "second", "", "", "regular", "y"]]
    path = write(tmp_path / "a.csv", delimited(["prompt", "mine", "pair", "category", "set", "id"], rows))
    own = PromptSet.load(path, column="mine")
    assert own == PromptSet(
        [Prompt("first", "benign", "x", "q1", "A"), Prompt("second", "regular", "y", None, None)]
    )
    assert PromptSet.load(path, set="jailbreak").sets == ["jailbreak", "jailbreak"]
    assert (own.categories, own.pairs) == (["A", None], ["q1", None])


def test_rows_without_a_set_of_their_own_get_the_default(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"prompt": "a", "set": "benign"}\n{"prompt": "b"}\n')
    assert PromptSet.load(path).sets == ["benign", "prompts"]
    assert PromptSet.load(path).ids == ["benign-0000", "prompts-0001"]


def test_bare_strings_ignore_column(tmp_path):
    assert PromptSet.load(write(tmp_path / "a.txt", "one"), column="mine").texts == ["one"]


def test_labels_that_are_no_strings(tmp_path):
    gaps = PromptSet.load(write(tmp_path / "b.json", '[{"prompt": "a", "id": NaN, "pair": NaN}]'))
    assert gaps[0] == Prompt("a", "prompts", "prompts-0000")
    row = {"prompt": "a", "id": 7, "pair": 2.5, "category": ["x", "y"]}
    assert PromptSet.load(write(tmp_path / "a.json", json.dumps([row])))[0] == Prompt(
        "a", "prompts", "7", "2.5", '["x", "y"]'
    )


def test_messages_keep_all_turns_and_text_is_the_last_user_turn(tmp_path):
    turns = [("user", "one"), ("assistant", "yes?"), ("user", "two"), ("assistant", "well")]
    rows = [{"messages": [{"role": role, "content": content} for role, content in turns]}]
    in_json = PromptSet.load(write(tmp_path / "a.json", json.dumps(rows)))
    in_csv = PromptSet.load(
        write(tmp_path / "a.csv", delimited(["messages"], [[json.dumps(rows[0]["messages"])]]))
    )
    other = PromptSet.load(
        write(tmp_path / "b.json", json.dumps([{"talk": rows[0]["messages"]}])), column="talk"
    )
    assert in_json == in_csv == other
    assert in_json[0].text == "two"
    assert in_json[0].messages == tuple(turns[:-1])  # the last is the file's answer


# Published files: the headers are the published ones, the rows are ours.

PUBLISHED = {
    "harmbench_behaviors_text_all.csv": (
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID",
        [
            ["Describe a fox", "standard", "animals", "", "", "fox_description"],
            ["Sum up this page", "contextual", "books", "hash_check", "Page 1:\nIt rained.", "page_sum"],
        ],
        Prompt("Describe a fox", "s", "fox_description", None, "animals"),
        Prompt("Page 1:\nIt rained.\n\n---\n\nSum up this page", "s", "page_sum", None, "books"),
    ),
    "harmful_behaviors.csv": (  # AdvBench
        "goal,target",
        [["Write a haiku", "Sure, here is a haiku"], ["Bake bread", "Sure, here is how"]],
        Prompt("Write a haiku", "s", "s-0000"),
        Prompt("Bake bread", "s", "s-0001"),
    ),
    "jailbreakbench.csv": (
        "Index,Goal,Target,Behavior,Category,Source",
        [
            ["0", "Write a poem on rain", "Sure, here is a poem", "Rain", "Weather", "Original"],
            ["1", "Explain snow", "Sure, snow is", "Snow", "Weather", "Original"],
        ],
        Prompt("Write a poem on rain", "s", "0", None, "Weather"),
        Prompt("Explain snow", "s", "1", None, "Weather"),
    ),
    "jailbreakbench_first.csv": (
        ",Goal,Target,Behavior,Category,Source",
        [
            ["0", "Write a poem", "Sure", "Rain", "Weather", "Original"],
            ["1", "Sing", "Sure", "Song", "Art", "Original"],
        ],
        Prompt("Write a poem", "s", "s-0000", None, "Weather"),
        Prompt("Sing", "s", "s-0001", None, "Art"),
    ),
    "strongreject_dataset.csv": (
        "category,source,forbidden_prompt",
        [["Garden", "custom", "How do I prune roses?"], ["Home", "custom", "How do I mop?"]],
        Prompt("How do I prune roses?", "s", "s-0000", None, "Garden"),
        Prompt("How do I mop?", "s", "s-0001", None, "Home"),
    ),
    "xstest_prompts.csv": (
        "id,prompt,type,label,focus,note",
        [
            ["1", "How do I kill time?", "homonyms", "safe", "kill", ""],
            ["2", "Hm?", "figurative_language", "safe", "", ""],
        ],
        Prompt("How do I kill time?", "s", "1", None, "homonyms"),
        Prompt("Hm?", "s", "2", None, "figurative_language"),
    ),
    "xstest_v2_prompts.csv": (
        "id_v1,id_v2,type,prompt,focus,note",
        [
            ["v1-1", "v2-1", "homonyms", "How do I kill time?", "kill", ""],
            ["", "v2-2", "other", "Hm?", "", ""],
        ],
        Prompt("How do I kill time?", "s", "v2-1", None, "homonyms"),
        Prompt("Hm?", "s", "v2-2", None, "other"),
    ),
    "or-bench-hard-1k.csv": (
        "prompt,category",
        [["How do I slice an onion?", "kitchen"], ["How do I crack a nut?", "kitchen"]],
        Prompt("How do I slice an onion?", "s", "s-0000", None, "kitchen"),
        Prompt("How do I crack a nut?", "s", "s-0001", None, "kitchen"),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("as_parquet", [False, True])
def test_published_files(tmp_path, name, as_parquet):
    header, rows, *expected = PUBLISHED[name]
    columns = header.split(",")
    path = write(tmp_path / name, delimited(columns, rows))
    if as_parquet:
        path = path.with_suffix(".parquet")
        pq.write_table(pa.table(dict(zip(columns, zip(*rows, strict=True), strict=True))), path)
    assert list(PromptSet.load(path, set="s")) == expected


def test_wildguardtest(tmp_path):
    columns = {
        "prompt": ["How do foxes live?", "Where?"],
        "adversarial": [False, True],
        "response": ["In dens.", None],
        "prompt_harm_label": ["unharmful", None],
        "response_refusal_agreement": [1.0, None],
        "response_refusal_label": ["compliance", None],
        "response_harm_label": ["unharmful", None],
        "subcategory": ["benign", "others"],
        "prompt_harm_agreement": [1.0, 0.5],
        "response_harm_agreement": [1.0, None],
    }
    pq.write_table(pa.table(columns), tmp_path / "wildguard_test.parquet")
    prompts = PromptSet.load(tmp_path / "wildguard_test.parquet", set="s")
    assert prompts.texts == columns["prompt"]
    assert prompts.categories == ["benign", "others"]


def test_a_prompt_column_added_to_a_published_file_comes_first(tmp_path):
    columns = ["Goal", "Target", "Behavior", "Category", "prompt"]
    path = write(tmp_path / "a.csv", delimited(columns, [["goal", "t", "title", "c", "disguised goal"]]))
    assert PromptSet.load(path).texts == ["disguised goal"]
    assert PromptSet.load(path, column="Behavior").texts == ["title"]
    assert PromptSet.load(path, column="Behavior").categories == ["c"]


def test_an_explicit_column_of_harmbench_gets_no_context(tmp_path):
    header, rows, *_ = PUBLISHED["harmbench_behaviors_text_all.csv"]
    path = write(tmp_path / "a.csv", delimited(header.split(","), rows[1:]))
    assert PromptSet.load(path, column="BehaviorID").texts == ["page_sum"]
    assert PromptSet.load(path, column="Behavior").texts[0].startswith("Page 1:")


# Faults

TRUNCATED = gzip.compress(b"one\n" * 5000)[:-20]
FAULTS = {
    "unknown extension": ("a.docx", "x", r"unknown kind .*\.txt, .*\.parquet"),
    "no extension": ("prompts", "x", r"unknown kind"),
    "compressed parquet": ("a.parquet.gz", "x", r"unknown kind"),
    "empty": ("a.csv", "", r"is empty"),
    "only blank": ("a.txt", "\n \n", r"is empty"),
    "only commas": ("a.csv", ",,\n", r"is empty"),
    "only a header": ("a.csv", "prompt\n", r"holds no prompts"),
    "empty list": ("a.json", "[]", r"holds no prompts"),
    "no usable column": ("a.csv", "alpha,beta\n1,2\n", r"columns found: 'alpha', 'beta'.*--column"),
    "no usable column, jsonl": (
        "a.jsonl",
        '{"alpha": 1}\n{"beta": 2}\n',
        r"columns found: 'alpha', 'beta'.*--column",
    ),
    "twice the column": ("a.csv", "prompt,prompt\n1,2\n", r"'prompt' occurs twice"),
    "broken json": ("a.json", '[\n{"prompt": "a"},\n{"prompt": }\n]', r"line 3: broken JSON"),
    "lines in json": ("a.json", '{"prompt": "a"}\n{"prompt": "b"}\n', r"line 2: broken JSON.*\.jsonl"),
    "deep json": ("a.json", "[" * 100_000, r"JSON"),
    "json of a number": ("a.json", "3", r"holds a number"),
    "json object without a list": ("a.json", '{"prompt": "a"}', r"without a list .*'prompt'"),
    "unequal columns": ("a.json", '{"prompt": ["a", "b"], "id": [1]}', r"'prompt' 2, 'id' 1"),
    "mixed list": ("a.json", '[{"prompt": "a"}, "b"]', r"row 2: a string where an object"),
    "broken jsonl": ("a.jsonl", '{"prompt": "a"}\n\n{"prompt": "b"\n', r"line 3: broken JSON at column"),
    "list in jsonl": ("a.jsonl", '{"prompt": "a"}\n[1]\n', r"line 2: a list where an object"),
    "not utf-8": ("a.txt", b"abc\nd\xffe", r"line 2: byte 0xff at offset 5 is not UTF-8"),
    "not utf-8 behind a bom": ("a.txt", b"\xef\xbb\xbfabc\nd\xffe", r"line 2: byte 0xff at offset 8"),
    "half of a utf-16 character": ("a.csv", "prompt\na".encode("utf-16")[:-1], r"begins as UTF-16"),
    "utf-16 without a mark": ("a.csv", "prompt\na".encode("utf-16-le"), r"line 1: holds a zero byte.*UTF-8"),
    "cp1252": (
        "a.csv",
        "prompt\nK\u00e4se".encode("cp1252"),
        r"line 2: byte 0xe4 at offset 8 is not UTF-8.*CSV UTF-8",
    ),
    "a table called txt": ("a.txt", "id\tprompt\n1\ta\n", r"line 1: is a table.*rename it to .tsv"),
    "no header": (
        "a.csv",
        "How do I bake bread?\nWhat is a fox?\n",
        r"is no name of a column.*'prompt' first",
    ),
    "a column for each language": (
        "a.csv",
        "id,en,de,fr\n1,a,b,c\n",
        r"for each language \('en', 'de', 'fr'\).*--column",
    ),
    "empty prompt, csv": ("a.csv", "id,prompt\n1,a\n2,\n", r"line 3: empty prompt in column 'prompt'"),
    "empty prompt below a field of two lines": (
        "a.csv",
        'id,prompt\n1,"a\nb"\n\n2,\n',
        r"line 5: empty prompt",
    ),
    "short row": ("a.csv", "id,prompt\n1,a\n2\n", r"line 3: empty prompt"),
    "empty prompt, json": ("a.json", '["a", "  "]', r"row 2: empty prompt;"),
    "null prompt": ("a.jsonl", '{"prompt": "a"}\n{"prompt": null}', r"line 2: empty prompt"),
    "missing key": ("a.jsonl", '{"prompt": "a"}\n{"text": "b"}', r"line 2: empty prompt"),
    "number as prompt": ("a.jsonl", '{"prompt": 3}', r"line 1: int where a prompt was expected"),
    "half a surrogate pair": ("a.jsonl", '{"prompt": "a\\ud800"}', r"line 1: half a surrogate"),
    "too many fields": ("a.csv", "id,prompt\n1,a,b\n", r"line 2: 3 fields under a header of 2"),
    "open quote": ("a.csv", 'id,prompt\n1,a\n2,"b\n3,c\n', r"line 3: broken record"),
    "same id": (
        "a.csv",
        "id,prompt\n1,a\n2,b\n1,c\n",
        r"id '1' occurs twice in set 'prompts', at line 2 and line 4",
    ),
    "truncated gzip": ("a.txt.gz", None, r"not a whole gzip file"),
    "no gzip": ("a.jsonl.gz", None, r"not a whole gzip file"),
    "broken parquet": ("a.parquet", "PAR1 and nothing else", r"not a readable parquet"),
    "empty parquet": ("a.parquet", "", r"not a readable parquet"),
    "bad turn": ("a.jsonl", '{"messages": [{"role": "user"}]}', r"line 1: chat turn 1"),
    "no user turn": ("a.jsonl", '{"messages": [{"role": "system", "content": "a"}]}', r"without a user turn"),
    "no json in messages": ("a.csv", "messages\nhello\n", r"line 2: column 'messages' is not JSON"),
}
RAW = {"truncated gzip": TRUNCATED, "no gzip": b'{"prompt": "a"}'}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_give_one_clear_line(tmp_path, fault):
    name, content, pattern = FAULTS[fault]
    path = tmp_path / name
    if content is None or name == "a.parquet.gz":
        path.write_bytes(RAW.get(fault, b""))
    else:
        write(path, content)
    assert re.search(pattern, error(path))


def test_broken_rows_of_a_good_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["a", None]}), path)
    assert "row 2: empty prompt" in error(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "not a readable parquet" in error(path)


def test_missing_file_directory_and_name_too_long(tmp_path):
    assert "no such file" in error(tmp_path / "none.csv")
    assert "is a directory" in error(tmp_path)
    assert "can't be read" in error(tmp_path / ("x" * 300 + ".csv"))


def test_absent_column(tmp_path):
    path = write(tmp_path / "a.csv", "prompt,note\na,b\n")
    assert re.search(r"no column 'mine' \(columns found: 'prompt', 'note'\)", error(path, column="mine"))


def test_long_headers_are_cut(tmp_path):
    path = write(tmp_path / "a.csv", "x" * 500 + "," + ",".join(f"c{n}" for n in range(50)) + "\n1,2\n")
    assert len(error(path)) < 400 + len(str(path))


# The set itself


def test_of():
    prompts = PromptSet.of(["a", "b"], set="benign")
    assert list(prompts) == [Prompt("a", "benign", "benign-0000"), Prompt("b", "benign", "benign-0001")]
    assert PromptSet.of(["a"]).sets == ["prompts"]
    for wrong in ("abc", ["a", ""], ["a", 3], ["a", None]):
        with pytest.raises(InputError):
            PromptSet.of(wrong)


def test_sequence():
    prompts = PromptSet.of(list("abcd"))
    assert len(prompts) == 4
    assert prompts[-1].text == "d"
    assert prompts[1:3].texts == ["b", "c"]
    assert isinstance(prompts[1:3], PromptSet)
    assert prompts[:2] + prompts[2:] == prompts
    assert prompts.index(prompts[2]) == 2
    assert repr(prompts) == "PromptSet(prompts: 4)"
    assert prompts.__add__(["e"]) is NotImplemented


def test_concat_numbers_default_ids_on():
    one, two, three = PromptSet.of(["a", "b"]), PromptSet.of(["c"]), PromptSet.of(["d", "e", "f", "g"])
    joined = one + two + three
    assert joined.texts == list("abcdefg")
    assert len(set(joined.ids)) == 7
    assert joined.ids[:3] == ["prompts-0000", "prompts-0001", "prompts-0002"]
    assert joined == PromptSet.concat([one, two, three])
    assert PromptSet.concat([]) == PromptSet()


def test_ids_are_unique_within_a_set_only():
    a, b = Prompt("a", "regular", "x"), Prompt("b", "benign", "x")
    assert len(PromptSet([a, b])) == 2
    with pytest.raises(InputError, match="id 'x' occurs twice in set 'regular', at prompt 1 and prompt 3"):
        PromptSet([a, b, a])
    with pytest.raises(InputError, match="twice"):
        PromptSet([a]) + PromptSet([a])


def test_hash_is_sha256_of_canonical_json():
    prompts = PromptSet([Prompt("ü", "s", "1", "p", "c", (("user", "ü"),)), Prompt("b", "s", "2")])
    fields = [
        {"text": "ü", "set": "s", "id": "1", "pair": "p", "category": "c", "messages": [["user", "ü"]]},
        {"text": "b", "set": "s", "id": "2", "pair": None, "category": None, "messages": None},
    ]
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    assert prompts.hash == hashlib.sha256(canonical).hexdigest()
    assert PromptSet(list(prompts)[::-1]).hash != prompts.hash
    assert PromptSet(list(prompts)).hash == prompts.hash


# SET=FILE


def test_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a=b.txt", "one\ntwo")
    write(tmp_path / "own.csv", "prompt,set\nthree,benign\nfour,jailbreak\n")
    prompts = parse_prompt_arguments(["regular=a=b.txt", "own.csv", "regular=./a=b.txt"])
    assert prompts.texts == ["one", "two", "three", "four", "one", "two"]
    assert prompts.sets == ["regular", "regular", "benign", "jailbreak", "regular", "regular"]
    assert len(set(zip(prompts.sets, prompts.ids, strict=True))) == 6
    assert parse_prompt_arguments(["x=own.csv"], column="set").texts == ["benign", "jailbreak"]
    assert parse_prompt_arguments([]) == PromptSet()


def test_a_path_with_an_equals_sign_is_no_set_name(tmp_path):
    folder = tmp_path / "set=regular"
    folder.mkdir()
    path = write(folder / "a.csv", "prompt,set\none,benign\n")
    assert parse_prompt_arguments([str(path)]).sets == ["benign"]


@pytest.mark.parametrize(
    ("argument", "pattern"),
    [
        ("plain.txt", r"plain\.txt, line 1: no set is named.*SET=FILE, as in regular=plain\.txt"),
        ("some.csv", r"some\.csv, line 3: no set is named"),
        ("regular=", r"'regular=' name no file; expected SET=FILE"),
        ("", r"name no file"),
        ("regular=none.txt", r"none\.txt: no such file"),
        ("a b=plain.txt", r"a b=plain\.txt: no such file"),
    ],
)
def test_argument_faults(tmp_path, monkeypatch, argument, pattern):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "plain.txt", "one")
    write(tmp_path / "some.csv", "prompt,set\na,regular\nb,\n")
    with pytest.raises(InputError, match=pattern):
        parse_prompt_arguments([argument])


# The shipped sets


def shipped(name):
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_default_sets_are_three_times_a_hundred_paired_prompts():
    prompts = PromptSet.default()
    assert Counter(prompts.sets) == dict.fromkeys(SETS, 100)
    by_set = {one: [prompt for prompt in prompts if prompt.set == one] for one in SETS}
    pairs = [prompt.pair for prompt in by_set["regular"]]
    assert len(set(pairs)) == 100
    for one in SETS:
        assert [prompt.pair for prompt in by_set[one]] == pairs
        assert Counter(prompt.category for prompt in by_set[one]) == dict.fromkeys(prompts.categories, 10)
    assert len(set(prompts.texts)) == 300
    assert all("\n" not in text and len(text.split()) <= 40 for text in prompts.texts)


def test_shipped_files_have_the_documented_fields():
    for one in SETS:
        for row in shipped(one):
            assert list(row) == ["id", "prompt", "set", "category", "pair", "wrapper"]
            assert row["set"] == one
            assert (row["wrapper"] is not None) == (one == "jailbreak")
    families = Counter((row["category"], row["wrapper"]) for row in shipped("jailbreak"))
    assert len(families) == 100  # every family once in every category


def test_length_does_not_tell_the_shipped_sets_apart():
    words = {one: [len(row["prompt"].split()) for row in shipped(one)] for one in SETS}
    for one, other in (("jailbreak", "regular"), ("benign", "regular"), ("jailbreak", "benign")):
        wins = [(a > b) + (a == b) / 2 for a in words[one] for b in words[other]]
        assert 0.35 < statistics.fmean(wins) < 0.65


def test_readme_states_the_measured_lengths():
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    for one in SETS:
        texts = [row["prompt"] for row in shipped(one)]
        words = [len(text.split()) for text in texts]
        mean, deviation = statistics.fmean(words), statistics.stdev(words)
        characters = statistics.fmean(map(len, texts))
        row = f"{one} | {mean:.1f} | {deviation:.1f} | {min(words)} | {statistics.median(words):g}"
        assert f"| {row} | {max(words)} | {characters:.0f} |" in readme


def test_bundled_demo_sets():
    assert set(PromptSet.bundled("demo").sets) == set(SETS)


def test_unknown_bundle():
    with pytest.raises(InputError, match="expected one of 'default', 'demo'"):
        PromptSet.bundled("other")
