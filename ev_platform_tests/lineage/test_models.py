import pytest

from ev_platform.errors import UserError
from ev_platform.lineage.models import Column, load_models


@pytest.fixture
def write(tmp_path):
    """Return a function that writes SQL models, `layer/name` -> text, and gives their root."""

    def write(**models):
        for name, sql in models.items():
            layer, _, stem = name.partition("__")
            file = tmp_path / "models" / layer / f"{stem}.sql"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(sql)
        return tmp_path

    return write


def test_models_come_after_what_they_read(write):
    root = write(
        a__last="SELECT task FROM middle JOIN chunks USING (task)",
        z__first="SELECT * FROM documents_history",
        b__middle="SELECT * FROM first",
    )
    models = {model.name: model for model in load_models(root)}
    assert list(models) == ["first", "middle", "last"]
    assert models["last"].reads == ("middle", "chunks")  # by place
    assert models["last"].layer == "a"


def test_models_read_neither_their_own_ctes_nor_subqueries(write):
    root = write(a__m="WITH few AS (SELECT * FROM chunks) SELECT * FROM few, (SELECT 1 AS x) AS other")
    (model,) = load_models(root)
    assert model.reads == ("chunks",)


def test_models_have_their_descriptions_from_the_yaml_file(write):
    root = write(a__m="SELECT chunk_id, n_tokens FROM chunks", a__n="SELECT * FROM chunks")
    (root / "models.yml").write_text("m:\n  description: All passages.\n  columns: {n_tokens: Of the student.}\n")
    models = {model.name: model for model in load_models(root)}
    assert {name: model.description for name, model in models.items()} == {"m": "All passages.", "n": ""}
    assert models["m"].columns == (Column("chunk_id", "VARCHAR", None), Column("n_tokens", "BIGINT", "Of the student."))


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ("odd: {description: x}", r"models\.yml: it describes 'odd', but there is no such SQL model"),
        ("m: {columns: {odd: x}}", r"models\.yml: it describes the column 'odd', which the model 'm' does not have"),
    ],
)
def test_description_of_what_does_not_exist_is_refused(write, described, said):
    root = write(a__m="SELECT * FROM chunks")
    (root / "models.yml").write_text(described)
    with pytest.raises(UserError, match=said):
        load_models(root)


BROKEN = [
    ("SELECT *\n\nFROM chunkz", r"line 3: it reads the table 'chunkz', which does not exist; did you mean 'chunks'\?"),
    ("SELECT *\nFROM nowhere_at_all", r"line 2: it reads the table 'nowhere_at_all', which does not exist\."),
    ("SELECT task,\n  colour\nFROM chunks", r'line 2: .*column "colour" not found'),
    ("SELECT c.task,\n  c.colour\nFROM chunks AS c", r'line 2: .*"c" does not have a column named "colour"'),
    ("SELECT task FROM chunks AS c\nWHERE d.page = 1", r'line 2: .*table "d" not found'),
    ("WITH few AS (SELECT task FROM chunks)\nSELECT page FROM few", r'line 2: .*column "page" not found'),
    ("SELECT task,\n\n  publisher FROM fine", r'line 3: .*column "publisher" not found'),
    ("SELECT task\nFROM chunks JOIN documents USING (chunk_id)", r'line 2: .*"chunk_id"'),
    ("SELECT list_sum(text)\nFROM chunks", r"line 1: .*No function matches"),
    ("SELECT task,\n\n  FROM WHERE (", r"line 3: .*syntax error"),
    ("SELECT 'open\nFROM chunks", r"line 1: .*unterminated"),
    ("", r"one SELECT, and nothing else"),
    ("-- nothing but a remark", r"one SELECT, and nothing else"),
    ("SELECT 1; SELECT 2", r"one SELECT, and nothing else"),
    ("DROP TABLE chunks", r"one SELECT, and nothing else"),
    ("SELECT * FROM odd", r"circle: odd reads odd"),
]


@pytest.mark.parametrize(("sql", "said"), BROKEN)
def test_model_that_cannot_be_used_is_refused_by_file_and_line(write, sql, said):
    with pytest.raises(UserError, match=said if "circle" in said else rf"models/a/odd\.sql[:,] .*{said}"):
        load_models(write(a__fine="SELECT task, chunk_id FROM chunks", a__odd=sql))


def test_model_cannot_take_the_name_of_a_table(write):
    with pytest.raises(UserError, match=r"a/chunks\.sql: there is a table 'chunks' already"):
        load_models(write(a__chunks="SELECT task FROM documents"))


def test_models_that_read_each_other_are_refused_by_name(write):
    root = write(a__one="SELECT * FROM two", a__two="SELECT * FROM three", a__three="SELECT * FROM one")
    # Said in the direction of reading, wherever the circle is entered.
    with pytest.raises(UserError, match=r"circle: .*(one reads two|two reads three reads one|three reads one)"):
        load_models(root)


def test_every_shipped_model_has_a_description_and_every_description_a_model():
    models = load_models()
    assert models
    assert [model.name for model in models if not model.description] == []
