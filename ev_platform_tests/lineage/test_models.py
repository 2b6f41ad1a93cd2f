import pytest

from ev_platform.errors import UserError
from ev_platform.lineage.models import load_models


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
        a__last="SELECT * FROM middle JOIN chunks USING (task)",
        z__first="SELECT * FROM documents_history",
        b__middle="SELECT * FROM first",
    )
    models = {model.name: model for model in load_models(root)}
    assert list(models) == ["first", "middle", "last"]
    assert models["last"].reads == ("chunks", "middle")
    assert models["last"].layer == "a"


def test_models_read_neither_their_own_ctes_nor_subqueries(write):
    root = write(a__m="WITH few AS (SELECT * FROM chunks) SELECT * FROM few, (SELECT 1 AS x) AS other")
    (model,) = load_models(root)
    assert model.reads == ("chunks",)


def test_models_have_their_descriptions_from_the_yaml_file(write):
    root = write(a__m="SELECT * FROM chunks", a__n="SELECT * FROM chunks")
    (root / "models.yml").write_text("m: All passages.\n")
    assert {model.name: model.description for model in load_models(root)} == {"m": "All passages.", "n": ""}


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT * FROM chunkz", r"models/a/odd\.sql reads the table 'chunkz', which does not exist"),
        ("SELECT FROM WHERE (", r"a/odd\.sql: not valid SQL"),
        ("SELECT 'open FROM chunks", r"a/odd\.sql: not valid SQL"),
        ("", r"a/odd\.sql: not valid SQL"),
        ("-- nothing but a remark", r"a/odd\.sql: not valid SQL"),
        ("SELECT * FROM odd", r"circle: odd reads odd"),
    ],
)
def test_model_that_cannot_be_used_is_refused_by_the_name_of_its_file(write, sql, said):
    with pytest.raises(UserError, match=said):
        load_models(write(a__fine="SELECT * FROM chunks", a__odd=sql))


def test_models_that_read_each_other_are_refused_by_name(write):
    root = write(a__one="SELECT * FROM two", a__two="SELECT * FROM three", a__three="SELECT * FROM one")
    # Said in the direction of reading, wherever the circle is entered.
    with pytest.raises(UserError, match=r"circle: .*(one reads two|two reads three reads one|three reads one)"):
        load_models(root)


def test_every_shipped_model_has_a_description_and_every_description_a_model():
    models = load_models()
    assert models
    assert [model.name for model in models if not model.description] == []
