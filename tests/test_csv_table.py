import csv
import gzip
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_jax.data import csv_table
from plan_jax.data.csv_table import BROKEN, TOO_FEW, TOO_MANY, TableRow, is_blank, number, read_table, read_text
from plan_jax.errors import InputError

HEADER = ("Path", "Age", "Edema")
cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=4)


@pytest.fixture
def table(tmp_path):
    def write(content: bytes | str, name: str = "table.csv"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def test_columns_come_in_the_order_asked_for_whatever_their_case_and_spaces(table):
    path = table("\ufeffpath, Edema ,AGE\r\na.jpg , 1.0,60\r\n")
    assert read_table(path, HEADER) == [TableRow(2, ("a.jpg", "60", "1.0"))]


def test_a_row_that_does_not_fit_its_header_is_marked_with_its_line(table):
    path = table("Path,Age,Edema\na,1,2\n\n ,,\nb,1\nc,1,2,\nd,1,2,3\n")
    assert [(row.line, row.cells, row.fault) for row in read_table(path, HEADER)] == [
        (2, ("a", "1", "2"), ""),
        (5, ("b", "1", ""), TOO_FEW),
        (6, ("c", "1", "2"), ""),
        (7, ("d", "1", "2"), TOO_MANY),
    ]


def test_columns_without_a_name_at_the_end_of_the_header_need_no_cells(table):
    path = table("Image Index,Bbox [x,y,w,h],,,\na.png,1,2,3,4\nb.png,1,2,3\n")
    assert [row.fault for row in read_table(path, ("Bbox [x", "h]"))] == ["", TOO_FEW]


def test_a_cell_over_several_lines_is_marked(table):
    path = table('Path,Age,Edema\na,"1\nb,2",3\nc,1,2\n')
    assert [(row.line, row.fault) for row in read_table(path, HEADER)] == [(3, BROKEN), (4, "")]


def test_damaged_characters_are_replaced(table):
    assert read_table(table(b"Path,Age,Edema\n\xff\xfe.jpg,1,2\n"), HEADER)[0].cells[0] == "\ufffd\ufffd.jpg"


def test_a_gzipped_table_reads_as_the_plain_one(table):
    content = b"Path,Age,Edema\na,1,2\n"
    packed = table(gzip.compress(content), "table.csv.gz")
    assert read_table(packed, HEADER) == read_table(table(content), HEADER)
    assert read_text(packed) == content.decode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"line 1 must name the column Path once, got 0"),
        ("Path,Age\n", r"line 1 must name the column Edema once, got 0"),
        ("Path,Age,path,Edema\n", r"line 1 must name the column Path once, got 2"),
        ("Path,Age,Edema".encode("utf-16"), r"line 1 must name the column Path once"),
        ('Path,Age,Edema\na,1,2\nb,"1,2\n', r"line 3 must be of a CSV table, got unexpected end of data"),
        ('Path,Age,Edema\na,"1"x,2\n', r"line 2 must be of a CSV table, got ',' expected"),
        ("Path,Age,Edema\n" + "x" * 200_000, r"line 2 must be of a CSV table, got field larger"),
    ],
)
def test_what_is_no_such_table_is_an_error_that_names_file_and_line(table, content, message):
    with pytest.raises(InputError, match=rf"table\.csv {message}"):
        read_table(table(content), HEADER)


@pytest.mark.parametrize("content", [b"Path,Age,Edema\n", gzip.compress(b"Path,Age,Edema\n" * 9, mtime=0)[:-9], b""])
def test_a_damaged_gzip_file_is_an_error_or_an_empty_table(table, content):
    with pytest.raises(InputError, match=r"t\.csv\.gz (line 1 )?must"):
        read_table(table(content, "t.csv.gz"), HEADER)


def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(InputError, match=r"gone\.csv must be a file that can be read, got No such file"):
        read_table(tmp_path / "gone.csv", HEADER)


@settings(max_examples=60)
@given(st.lists(st.tuples(cells, cells, cells), max_size=4))
def test_what_csv_writes_is_read_back_row_by_row(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("table") / "table.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    expected = [tuple(map(str.strip, row)) for row in rows if any(map(str.strip, row))]
    assert [(row.cells, row.fault) for row in read_table(path, HEADER)] == [(row, "") for row in expected]


@settings(max_examples=100)
@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_a_table_or_an_input_error(tmp_path_factory, content, headed):
    path = tmp_path_factory.mktemp("table") / "table.csv"
    path.write_bytes((b"Path,Age,Edema\n" if headed else b"") + content)
    try:
        rows, message = read_table(path, HEADER), "table.csv line "
    except InputError as error:
        rows, message = [], str(error)
    assert "table.csv line " in message
    assert all(len(row.cells) == 3 for row in rows)


@given(st.text(max_size=6))
def test_a_number_is_finite_or_none(text):
    found = number(text)
    assert found is None or math.isfinite(found)


def test_numbers_and_blanks():
    assert [number(text) for text in ("1.0", " -1 ", "1e30", "nan", "inf", "", "x")] == [1, -1, 1e30, *[None] * 4]
    assert [is_blank(text) for text in ("", " ", "NaN", "nan", "0", "none")] == [True] * 4 + [False] * 2


def test_a_small_gzip_file_that_unfolds_to_more_than_any_table_is_refused_before_it_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_table, "MAX_BYTES", 10_000)
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(b"a" * 10_000_000))
    read = []
    whole = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: read.append(size) or whole(self, size))
    with pytest.raises(InputError, match=r"bomb\.csv\.gz must hold at most 10000 bytes of text, got more"):
        read_text(tmp_path / "bomb.csv.gz")
    assert read == [10_001]
