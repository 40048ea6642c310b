"""Phenotype tables: three styles of columns, CSV and Parquet, several visits, and nothing said about anybody."""
import gzip
import random

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptacl.core.errors import PtaclError
from ptacl.core.presets import PHENOTYPES
from ptacl.data.tables import COVARIATES, _FIELDS, _STYLES, _at_visit, _column_name, _column_values, _load_columns
from ptacl.data.tables import phenotype_table, read_table, save_table, _ukb_column, table_visits, _write_table
from ptacl.simulate.patients import simulate

IDS = [str(10**6 + 7 * k) for k in range(1, 7)]  # look like participants
FILES = ("t.csv", "t.csv.gz", "t.tab", "t.tsv", "t.parquet")


@pytest.fixture(scope="module")
def virtual():
    patients = simulate(6, seed=5, ecg=False, cine=False)
    patients.phenotypes.index = patients.covariates.index = IDS
    return patients


def assert_same(read, virtual):
    ids, phenotypes, covariates = read
    assert ids == list(virtual.phenotypes.index)
    assert list(phenotypes) == list(PHENOTYPES) and list(covariates) == list(COVARIATES)
    np.testing.assert_allclose(phenotypes, virtual.phenotypes[list(PHENOTYPES)], rtol=1e-5)
    assert list(covariates.sex) == list(virtual.covariates.sex)
    np.testing.assert_allclose(covariates.drop(columns="sex").astype(float), virtual.covariates[list(COVARIATES)[1:]], rtol=1e-5)


# styles and formats

@pytest.mark.parametrize("style", _STYLES)
@pytest.mark.parametrize("name", FILES)
def test_there_and_back(virtual, tmp_path, style, name):
    _write_table(virtual.phenotypes, virtual.covariates, tmp_path / name, style)
    assert_same(read_table(tmp_path / name), virtual)


@pytest.mark.parametrize("edit", [
    lambda t: t.sample(frac=1, axis=1, random_state=1),                               # columns in any order
    lambda t: t.rename(columns=lambda c: f" {c} "),
    lambda t: t.rename(columns=lambda c: f"participant.{c}"),
    lambda t: t.assign(p31=t.p31.map({0: "Female", 1: "Male"})),
    lambda t: t.assign(**{"p4080_i2_a0": t.p4080_i2 - 5, "p4080_i2_a1": t.p4080_i2 + 5}).drop(columns="p4080_i2"),
    lambda t: t.assign(**{f"p{22420 + k}_i2": 1.0 for k in range(8)}, **{f"p{24110 + k}_i2": 2.0 for k in range(8)}),
    lambda t: t.assign(**{f"p{24100 + k}_i3": 3.0 for k in range(10)}, p31_i1=9),
])
@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_other_columns_and_codes(virtual, tmp_path, edit, name):
    table = edit(phenotype_table(virtual.phenotypes, virtual.covariates, "platform").reset_index())
    if name == "t.csv": table.to_csv(tmp_path / name, index=False)
    else: table.to_parquet(tmp_path / name, index=False)
    assert_same(read_table(tmp_path / name), virtual)


@pytest.mark.parametrize("dtype", ["int64", "int32", "float64", "Int64", "string", "category"])
def test_ids_of_any_type(virtual, tmp_path, dtype):
    table = phenotype_table(virtual.phenotypes, virtual.covariates).reset_index()
    table["eid"] = table["eid"].astype(float).astype("int64").astype(dtype if dtype != "category" else "string").astype(dtype)
    table.to_parquet(tmp_path / "t.parquet", index=False)
    assert_same(read_table(tmp_path / "t.parquet"), virtual)


@pytest.mark.parametrize("dtype", ["Int64", "float64", "string", "category", "bool"])
def test_sex_of_any_type(virtual, tmp_path, dtype):
    table = phenotype_table(virtual.phenotypes, virtual.covariates).reset_index()
    if dtype == "bool": table["31-0.0"] = table["31-0.0"] == 1
    else: table["31-0.0"] = table["31-0.0"].astype("Int64").astype("string" if dtype in ("string", "category") else dtype).astype(dtype)
    table.to_parquet(tmp_path / "t.parquet", index=False)
    if dtype == "bool":
        with pytest.raises(PtaclError, match="another code"): read_table(tmp_path / "t.parquet")  # "true" is none: nothing is guessed
    else: assert_same(read_table(tmp_path / "t.parquet"), virtual)


@pytest.mark.parametrize("codes, why", [
    ({"F": "F", "M": "m"}, None), ({"F": "Female", "M": "MALE "}, None), ({"F": "2", "M": "1"}, "another code in row"),
    ({"F": "W", "M": "M"}, "another code in row"), ({"F": "0", "M": "-9"}, "another code in row")])
def test_other_codes_of_sex_are_no_gap(virtual, tmp_path, codes, why):
    table = phenotype_table(virtual.phenotypes, virtual.covariates)
    save_table(table.assign(**{"31-0.0": virtual.covariates.sex.map(codes)}), tmp_path / "t.csv")
    if why is None: return assert_same(read_table(tmp_path / "t.csv"), virtual)
    with pytest.raises(PtaclError, match=why): read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("code", ["0", "-1", "-3", "-9.0"])
@pytest.mark.parametrize("column", ["24100-2.0", "21003-2.0"])
def test_codes_for_what_is_not_known_are_no_numbers(virtual, tmp_path, code, column):
    table = phenotype_table(virtual.phenotypes, virtual.covariates).astype(str)
    table.loc[IDS[2], column] = code
    save_table(table, tmp_path / "t.csv")
    with pytest.warns(UserWarning, match="not above 0, in row 4: taken as not measured"): _, y, c = read_table(tmp_path / "t.csv")
    lost = (y["LVEDV"] if column == "24100-2.0" else c["age"]).isna()
    assert lost.tolist() == [k == 2 for k in range(len(lost))]


def test_a_column_that_is_there_twice(virtual, tmp_path):
    text = phenotype_table(virtual.phenotypes, virtual.covariates).to_csv()
    lines = text.splitlines()
    (tmp_path / "t.csv").write_text("\n".join([f"{lines[0]},24103-2.0", *(f"{line},1" for line in lines[1:])]))
    with pytest.raises(PtaclError, match="the column 24103-2.0 more than once"): read_table(tmp_path / "t.csv")


def test_what_excel_writes(virtual, tmp_path):
    text = phenotype_table(virtual.phenotypes, virtual.covariates).to_csv(sep=";", decimal=",")
    (tmp_path / "t.csv").write_text(f"sep=;\n{text}", encoding="utf-8-sig")
    assert_same(read_table(tmp_path / "t.csv"), virtual)
    lines = text.splitlines()
    (tmp_path / "t.csv").write_text("\n".join(["sep=;", *lines[:2], lines[2] + ";"]))
    with pytest.raises(PtaclError, match="line 4 has 17 columns"): read_table(tmp_path / "t.csv")
    (tmp_path / "t.xlsx").write_bytes(b"PK\3\4" + bytes(99))
    with pytest.raises(PtaclError, match="Excel workbook"): read_table(tmp_path / "t.xlsx")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1"])
def test_encodings(virtual, tmp_path, encoding):
    table = phenotype_table(virtual.phenotypes, virtual.covariates).assign(**{"note é": "ü"}).to_csv()
    (tmp_path / "t.csv").write_bytes(table.encode(encoding))
    assert_same(read_table(tmp_path / "t.csv"), virtual)


def test_only_our_columns_are_loaded(virtual, tmp_path):
    many = pd.DataFrame(1.0, index=IDS, columns=[f"{30_000 + k}-2.0" for k in range(2000)])
    table = phenotype_table(virtual.phenotypes, virtual.covariates).join(many)
    for name in ("t.csv", "t.parquet"):
        save_table(table.rename_axis("eid"), tmp_path / name)
        assert _load_columns(tmp_path / name).shape == (6, 16)
        assert_same(read_table(tmp_path / name), virtual)


# which column is which

@given(st.integers(1, 10**5), st.integers(0, 9), st.integers(0, 99))
def test_column_styles(field, instance, array):
    assert {_ukb_column(c) for c in (f"{field}-{instance}.{array}", f"f.{field}.{instance}.{array}", f"p{field}_i{instance}_a{array}",
                                    f" participant.p{field}_i{instance}_a{array} ")} == {(field, instance, array)}


def test_a_column_with_a_number_of_thousands_of_digits_is_none_of_ours(virtual, tmp_path):
    table = phenotype_table(virtual.phenotypes, virtual.covariates, "platform")
    table.assign(**{f"p{'9' * 5000}_i2": 1.0}).to_csv(tmp_path / "t.csv")
    assert_same(read_table(tmp_path / "t.csv"), virtual)


@given(st.text(max_size=20))
def test_any_other_name_is_no_column(name):
    key = _ukb_column(name)
    assert key is None or (len(key) == 3 and any(c.isdigit() for c in name))


def test_fields():
    assert [_FIELDS[n] for n in PHENOTYPES] == [(24100 + k, 2) for k in range(10)]
    assert [_ukb_column(c) for c in ("24100", "24100-2", "f.24100", "24100-2.0.1", "P24100", "", "٣-2.0")] == [None] * 7
    assert {_column_name(n, s, 3) for n in ("LVEF", "sex") for s in _STYLES} == {
        "24103-3.0", "f.24103.3.0", "p24103_i3", "31-0.0", "f.31.0.0", "p31"}
    assert [_at_visit(n, 3) for n in ("age", "sex")] == [(21003, 3), (31, 0)]


# cells

def test_missing_cells_stay_missing(virtual, tmp_path):
    table = phenotype_table(virtual.phenotypes, virtual.covariates)
    table.iloc[0, 3] = table.iloc[2, :10] = np.nan
    table["31-0.0"] = table["31-0.0"].astype("Int64").where(np.arange(6) != 1)
    for name in FILES:
        save_table(table, tmp_path / name)
        ids, phenotypes, covariates = read_table(tmp_path / name)
        assert ids == IDS and phenotypes.isna().sum().sum() == 11 and np.isnan(phenotypes.LVEF.iloc[0])
        assert covariates.sex.isna().tolist() == [False, True, False, False, False, False]


def test_missing_covariates(virtual, tmp_path):
    save_table(phenotype_table(virtual.phenotypes, virtual.covariates).iloc[:, :10], tmp_path / "t.csv")
    covariates = read_table(tmp_path / "t.csv")[2]
    assert list(covariates) == list(COVARIATES) and covariates.isna().all(axis=None)


def test_one_of_two_readings_is_enough():
    table = pd.DataFrame({"4080-2.0": [120, None, None], "4080-2.1": [130, 140, None]})
    np.testing.assert_array_equal(_column_values(table, "sbp"), [125, 140, np.nan])


# visits

def test_several_visits(virtual, tmp_path):
    repeat = phenotype_table(virtual.phenotypes, virtual.covariates, instance=3).drop(columns="31-0.0")
    both = phenotype_table(virtual.phenotypes, virtual.covariates).join((repeat + 10)[1:3])
    for name in ("t.csv", "t.parquet"):
        save_table(both, tmp_path / name)
        assert table_visits(tmp_path / name) == [2, 3]
        assert_same(read_table(tmp_path / name), virtual)
        ids, phenotypes, covariates = read_table(tmp_path / name, instance=3)
        assert ids == IDS and phenotypes.notna().all(axis=1).tolist() == [False, True, True, False, False, False]
        np.testing.assert_allclose(phenotypes[1:3], virtual.phenotypes[1:3] + 10, rtol=1e-5)
        np.testing.assert_allclose(covariates.age[1:3], virtual.covariates.age[1:3] + 10, rtol=1e-5)
        assert list(covariates.sex) == list(virtual.covariates.sex)  # asked once


def test_a_visit_that_is_not_there(virtual, tmp_path):
    _write_table(virtual.phenotypes, virtual.covariates, tmp_path / "t.csv")
    assert table_visits(tmp_path / "t.csv") == [2]
    with pytest.raises(PtaclError, match=r"lacks LVEDV \(24100-3.0\)"): read_table(tmp_path / "t.csv", instance=3)


# refusals

@pytest.mark.parametrize("edit, why", [
    (lambda t: t.rename(columns={"eid": "name"}), "no column eid"),
    (lambda t: pd.concat([t, t[:1]]), "row 8 has an id that occurred before"),
    (lambda t: t.assign(eid=["/etc/x", *t.eid[1:]]), "row 2 has no id"),
    (lambda t: t.assign(eid=["..", *t.eid[1:]]), "row 2 has no id"),
    (lambda t: t.assign(eid=[None, *t.eid[1:]]), "row 2 has no id"),
    (lambda t: t.assign(eid=[t.eid[1] + ".0", *t.eid[1:]]), "row 3 has an id that occurred before"),
    (lambda t: t.assign(**{"24101-2.0": t.eid + " ml"}), "no number"),
    (lambda t: t.assign(**{"24101-2.0": "inf"}), "infinity"),
    (lambda t: t.assign(**{"p24100_i2": "1"}), "more than one column"),
    (lambda t: t.drop(columns=["24103-2.0", "24105-2.0"]).assign(**{"22420-2.0": "1"}), r"lacks LVEF \(24103-2.0\), LVM \(24105-2.0\)"),
])
@pytest.mark.parametrize("name", [f"{IDS[0]}.csv", f"{IDS[0]}.parquet"])
def test_refused_without_a_word_about_anybody(virtual, tmp_path, edit, why, name):
    table = edit(phenotype_table(virtual.phenotypes, virtual.covariates).reset_index().astype(str))
    if name.endswith("csv"): table.to_csv(tmp_path / name, index=False)
    else: table.to_parquet(tmp_path / name, index=False)
    with pytest.raises(PtaclError, match=why) as e: read_table(tmp_path / name)
    assert not any(i in str(e.value) for i in IDS) and str(tmp_path) not in str(e.value) and e.value.__cause__ is None


@pytest.mark.parametrize("name, content", [
    ("t.csv", b""), ("t.csv", b"\0" * 99), ("t.csv", b'eid,"24100-2.0\n1,2\n'), ("t.csv.gz", b"no gzip"), ("t.parquet", b"PAR1"), ("t.parquet", b"")])
def test_broken_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PtaclError, match=r"t\.(csv|parquet)"): read_table(tmp_path / name)


def test_no_such_file(tmp_path):
    for name in FILES:
        with pytest.raises(PtaclError, match=f"there is no {name}"): read_table(tmp_path / name)
    with pytest.raises(PtaclError): read_table(tmp_path)


def test_no_such_style(virtual):
    with pytest.raises(PtaclError, match="choose one of showcase, r, platform"): phenotype_table(virtual.phenotypes, virtual.covariates, "ours")


# texts of other programs

def as_text(virtual, separator, decimal=".", quoted=False):
    table = phenotype_table(virtual.phenotypes, virtual.covariates).round(3)
    table.insert(2, "note", ["a", "b c", "", "d", "e", "f"])
    return table.to_csv(sep=separator, decimal=decimal, quoting=1 if quoted else 0, lineterminator="\n")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["t.csv", "t.tab", "t.txt", "t.csv.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("quoted", [False, True])
def test_separators_encodings_and_quotation_marks(virtual, tmp_path, separator, name, encoding, quoted):
    data = as_text(virtual, separator, quoted=quoted).replace("\n", "\r\n").encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    ids, phenotypes, covariates = read_table(tmp_path / name)
    assert ids == IDS and list(covariates.sex) == list(virtual.covariates.sex)
    np.testing.assert_allclose(phenotypes, virtual.phenotypes, atol=6e-4)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_decimal_commas(virtual, tmp_path, separator):
    text = as_text(virtual, separator, ",", quoted=separator == ",")
    (tmp_path / "t.csv").write_text(text)
    ids, phenotypes, _ = read_table(tmp_path / "t.csv")
    np.testing.assert_allclose(phenotypes, virtual.phenotypes, atol=6e-4)
    value = f"{virtual.phenotypes.LVEDV.iloc[3]:.3f}".rstrip("0")
    mixed = text.replace(value.replace(".", ","), value)
    assert mixed != text
    (tmp_path / "t.csv").write_text(mixed)
    with pytest.raises(PtaclError, match=r"decimal comma \(row 2\) and a decimal point \(row 5\)"): read_table(tmp_path / "t.csv")


def test_free_text_that_begins_with_a_quotation_mark(virtual, tmp_path):
    for k, note in ((2, '"5 mg daily'), (4, '"10 mg at night'), (5, '"')):
        lines = as_text(virtual, "\t").splitlines()
        cells = lines[k + 1].split("\t")
        cells[3] = note
        lines[k + 1] = "\t".join(cells)
        (tmp_path / "t.tab").write_text("\n".join(lines) + "\n")
        ids, phenotypes, _ = read_table(tmp_path / "t.tab")
        assert ids == IDS
        np.testing.assert_allclose(phenotypes, virtual.phenotypes, atol=6e-4)
        (tmp_path / "t.csv").write_text("\n".join(lines).replace("\t", ","))
        with pytest.raises(PtaclError, match=f"line {k + 2} has a quotation mark that is not closed"): read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("separator, damage, why", [
    (",", lambda line: line + ",1", "line 4 has 18 columns, and the first line 17"),
    ("\t", lambda line: line.rpartition("\t")[0], "line 4 has 16 columns, and the first line 17 .separated by tabs"),
    (";", lambda line: '"' + line.replace(";", ';"', 3), r"line 4 has \d+ columns|line 4 has a quotation mark"),
])
def test_a_line_that_does_not_fit_is_named(virtual, tmp_path, separator, damage, why):
    lines = as_text(virtual, separator).splitlines()
    lines[3] = damage(lines[3])
    (tmp_path / "t.csv").write_text("\n".join(lines))
    with pytest.raises(PtaclError, match=why) as e: read_table(tmp_path / "t.csv")
    assert not any(i in str(e.value) for i in IDS)


def test_a_cell_that_is_no_number_is_named_by_its_row(virtual, tmp_path):
    table = phenotype_table(virtual.phenotypes, virtual.covariates).astype(object)
    table.iloc[3, 2] = "high"
    table.to_csv(tmp_path / "t.csv")
    with pytest.raises(PtaclError, match="no number in row 5"): read_table(tmp_path / "t.csv")


@settings(max_examples=150)
@given(st.randoms(use_true_random=False), st.sampled_from(["t.csv", "t.csv.gz", "t.parquet"]))
def test_mutated_bytes_end_in_a_table_or_a_refusal(virtual, tmp_path, r, name):
    file = tmp_path / name
    _write_table(virtual.phenotypes, virtual.covariates, file)
    data = bytearray(gzip.decompress(file.read_bytes()) if r.random() < 0.5 and name.endswith("gz") else file.read_bytes())
    for _ in range(r.choice([1, 3, 30])): data[r.randrange(len(data))] = r.randrange(256)
    if r.random() < 0.3: del data[r.randrange(len(data)):]
    file.write_bytes(data)
    try: ids, phenotypes, covariates = read_table(file)
    except PtaclError as e: assert not any(i in str(e) for i in IDS)
    else: assert len(ids) == len(phenotypes) == len(covariates) and not np.isinf(phenotypes).any(axis=None)


def test_mutated_cells(virtual):
    r = random.Random(0)
    odd = ["", " ", "NA", "-1", "1e400", "0x1", "1,5", "nan", "é", "True", "1_000", None, "١"]
    for _ in range(100):
        table = phenotype_table(virtual.phenotypes, virtual.covariates).reset_index().astype(object)
        for _ in range(3): table.iat[r.randrange(6), r.randrange(1, 16)] = r.choice(odd)
        for name in _FIELDS:
            try: values = _column_values(table, name)
            except PtaclError: continue
            assert len(values) == 6


def test_ids_that_are_no_text_are_not_quoted(virtual, tmp_path):
    file = tmp_path / "t.parquet"
    table = pa.Table.from_pandas(phenotype_table(virtual.phenotypes, virtual.covariates))
    pq.write_table(table, file, compression="none", use_dictionary=False, write_statistics=False)
    good, one = file.read_bytes(), IDS[2].encode()
    bad = good.replace(one, one[:1] + b"\xd8" + one[2:])
    assert good != bad
    file.write_bytes(bad)
    with pytest.raises(PtaclError, match="cannot be read as Parquet") as e: read_table(file)
    assert IDS[2][2:] not in str(e.value)


@pytest.mark.parametrize("name, factor", [("LVEDV", 1e-3), ("LVEF", 1e-2), ("LVM", 1e-3), ("height", 1e-2), ("sbp", 1 / 7.5)])
def test_a_column_in_another_unit_is_said(virtual, tmp_path, name, factor):
    table = phenotype_table(virtual.phenotypes, virtual.covariates).reset_index()
    column = _column_name(name, "showcase")
    assert column in table
    table[column] = table[column].astype(float) * factor
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.warns(UserWarning, match=f"^t.csv: the median of {name} is .* is it in another unit") as said:
        read_table(tmp_path / "t.csv")
    assert len(said) == 1 and not any(i in str(said[0].message) for i in IDS)


def test_a_table_of_no_rows_and_ids_shortened_by_a_spreadsheet(virtual, tmp_path):
    table = phenotype_table(virtual.phenotypes, virtual.covariates).reset_index()
    for ext, write in (("csv", table.iloc[:0].to_csv), ("parquet", table.iloc[:0].to_parquet)):
        write(tmp_path / f"empty.{ext}", index=False)
        with pytest.raises(PtaclError, match="has no row below the names of its columns. Export the table anew"):
            read_table(tmp_path / f"empty.{ext}")
    table["eid"] = [f"{float(i):.2E}" for i in table["eid"]]
    table.to_csv(tmp_path / "short.csv", index=False)
    with pytest.raises(PtaclError, match="export the table anew, the ids as text"):
        read_table(tmp_path / "short.csv")
