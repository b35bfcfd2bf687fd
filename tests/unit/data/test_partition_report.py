"""The report of a division: counts, shares, table, CSV and picture."""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ET

import numpy as np

from federation.data.partitions import PartitionReport, label_dirichlet

LABELS = np.array([0, 0, 1, 2, 2, 2])
REPORT = PartitionReport.of(LABELS, [np.array([0, 2, 3]), np.array([1, 4, 5])], ["north", "south"])


def test_counts_are_those_of_the_parts():
    assert REPORT.counts.tolist() == [[1, 1, 1], [1, 0, 2]]
    assert REPORT.totals.tolist() == [3, 3] and REPORT.classes == ("0", "1", "2")


def test_fractions_sum_to_one_at_every_site():
    labels = np.random.default_rng(0).integers(0, 7, size=500)
    report = PartitionReport.of(labels, label_dirichlet(labels, 9, alpha=0.4, seed=2))
    assert np.allclose(report.fractions.sum(axis=1), 1) and report.counts.sum() == 500
    assert report.sites == tuple("012345678")


def test_the_table_has_a_line_for_each_site_and_one_for_all():
    lines = REPORT.table().splitlines()
    assert [line.split() for line in lines] == [
        ["site", "examples", "0", "1", "2"],
        ["north", "3", "1", "1", "1"],
        ["south", "3", "1", "0", "2"],
        ["all", "6", "2", "1", "3"],
    ]
    assert len({len(line) for line in lines}) == 1, "columns are aligned"


def test_the_csv_reads_back():
    rows = list(csv.DictReader(io.StringIO(REPORT.csv())))
    assert len(rows) == 6
    assert rows[5] == {"site": "south", "class": "2", "examples": "2", "fraction": "0.666667"}


def test_the_picture_has_a_cell_for_each_class_a_site_has_the_darker_the_more():
    report = PartitionReport.of_sites({"<a> & b": np.array([1.0, 1.0, 2.0]), "c": np.array([2.0])})
    assert report.classes == ("1", "2")
    root = ET.fromstring(report.svg())  # noqa: S314 - made just above
    cells = [box for box in root.iter() if box.tag.endswith("rect")]
    assert [cell[0].text for cell in cells] == ["<a> & b, class 1: 2", "<a> & b, class 2: 1", "c, class 2: 1"]
    assert [float(cell.get("fill-opacity")) for cell in cells] == [1.0, 0.54, 0.54]
    texts = [text.text for text in root.iter() if text.tag.endswith("text")]
    assert texts == ["1", "2", "<a> & b", "2", "1", "3", "c", "1", "1"]


def test_a_picture_of_many_classes_stays_narrow_and_leaves_out_the_numbers():
    labels = np.arange(1000) % 100
    report = PartitionReport.of(labels, np.array_split(np.arange(1000), 4))
    root = ET.fromstring(report.svg())  # noqa: S314 - made just above
    assert float(root.get("width")) < 700
    assert sum(1 for text in root.iter() if text.tag.endswith("text")) == 8, "names and totals only"
