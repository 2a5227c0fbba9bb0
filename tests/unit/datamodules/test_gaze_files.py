"""Parsers of single readings, on files written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medprism.data.errors import DataError
from medprism.data.texts import Box
from medprism.datamodules import gaze_files
from medprism.datamodules.gaze_files import (
    egd_gaze,
    egd_regions,
    egd_words,
    numbers,
    read_columns,
    reflacx_fixations,
    reflacx_regions,
    reflacx_words,
    truth,
)

IMAGE = "0123abcd-0123abcd-0123abcd-0123abcd-0123abcd"
OTHER = IMAGE.replace("d", "e")
GAZE = "DICOM_ID,FPOGX,FPOGY,FPOGS,FPOGD,FPOGID,FPOGV,X_ORIGINAL,Y_ORIGINAL"


def write(file: Path, *lines: str, end: str = "\n") -> Path:
    file.write_bytes("".join(line + end for line in lines).encode())
    return file


# ------------------------------------------------------------------------------------------------------------- columns
def test_columns_are_read_by_name_whatever_the_line_ends(tmp_path: Path) -> None:
    for end in ("\n", "\r\n"):
        file = write(tmp_path / "a.csv", ",b,a", '0,"1, or\n2",x', "1,3,y", end=end)
        assert read_columns(file, ("a", "b"), ("c",)) == {"a": ["x", "y"], "b": ["1, or\n2", "3"]}
        assert list(read_columns(file, ("a",), None)) == ["a", "", "b"]


def test_bad_tables_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.csv lacks the columns \['c'\]; it has \['a', 'b'\]"):
        read_columns(write(tmp_path / "a.csv", "a,b", "1,2"), ("a", "c"))
    with pytest.raises(DataError, match=r"a\.csv, row 3: 1 cells, but the header has 2; mend the row"):
        read_columns(write(tmp_path / "a.csv", "a,b", "1,2", "3"), ("a",))
    with pytest.raises(DataError, match=r"a\.csv lacks the columns \['a'\]; it has \[\]"):
        read_columns(write(tmp_path / "a.csv"), ("a",))
    (tmp_path / "latin.csv").write_bytes("a\nüber\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.csv: byte 2 is not UTF-8; save the file as UTF-8"):
        read_columns(tmp_path / "latin.csv", ("a",))
    with pytest.raises(DataError, match=r"none\.csv cannot be read"):
        read_columns(tmp_path / "none.csv", ("a",))


def test_numbers_may_be_empty_but_nothing_else() -> None:
    np.testing.assert_array_equal(numbers(["1", "", "-2.5e1", "nan"], Path("a.csv"), "x"), [1, np.nan, -25, np.nan])
    with pytest.raises(DataError, match=r"a\.csv, row 4: column 'x' holds 'two', expected a number"):
        numbers(["1", "", "two"], Path("a.csv"), "x")


def test_truth_of_cells() -> None:
    assert [truth(cell) for cell in ("True", "1", "1.0", "false", "0", "", "-1", "5")] == [1, 1, 1, 0, 0, 0, 0, 1]


# ------------------------------------------------------------------------------------------------------------- EGD-CXR
def test_rows_of_one_fixation_are_one(tmp_path: Path) -> None:
    file = write(
        tmp_path / "fixations.csv",
        GAZE,
        f"{IMAGE[:-5]},0.5,0.5,0,1,1,1,-1,-1",  # calibration
        f"{IMAGE},0.10,0.20,0.5,0.1,1,1,100,200",
        f"{IMAGE},0.11,0.21,0.5,0.3,1,1,110,210",  # the same fixation goes on
        f"{IMAGE},0.00,0.00,0.9,0.1,2,0,-1,-1",  # not valid
        f"{IMAGE},0.30,0.40,1.0,0.2,2,1,300,0",  # off the image
        f"{OTHER},0.30,0.40,0.1,0.2,2,1,300,400",  # another image begins with the same number
        f"{OTHER},0.30,0.40,0.4,0.2,3,1,310,410",
        "truncated,,,,what,,,,",
    )
    gaze, left_out = egd_gaze(file)
    assert left_out == {gaze_files.CALIBRATION: 2, gaze_files.INVALID: 1}
    first, second = gaze[IMAGE], gaze[OTHER]
    np.testing.assert_allclose(first.start, [0.5, 1.0])
    np.testing.assert_allclose(first.end, [0.8, 1.2])
    np.testing.assert_allclose(first.x, [110, -1])
    np.testing.assert_allclose(first.y, [210, -1])
    np.testing.assert_allclose(first.screen_x, [0.11 * 1920, 0.3 * 1920])
    np.testing.assert_allclose(second.x, [300, 310])
    np.testing.assert_allclose(second.fixations(7.0).sigma, [[7, 7], [7, 7]])


def test_large_tables_are_read_alike(tmp_path: Path, monkeypatch) -> None:
    file = write(
        tmp_path / "eye_gaze.csv", f"EXTRA,{GAZE}", *(f"?,{IMAGE},0.1,0.2,{k},0.5,{k},1,9,8" for k in range(9))
    )
    small = egd_gaze(file)
    monkeypatch.setattr(gaze_files, "LARGE", 0)
    large = egd_gaze(file)
    np.testing.assert_array_equal(np.array(small[0][IMAGE]), np.array(large[0][IMAGE]))
    assert small[1] == large[1] == {}
    with pytest.raises(DataError, match=r"cannot be read .*X_ORIGINAL"):
        egd_gaze(write(tmp_path / "b.csv", "DICOM_ID,FPOGX", f"{IMAGE},1"))


def test_bad_gaze_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fixations\.csv does not exist; mend root"):
        egd_gaze(tmp_path / "fixations.csv")
    with pytest.raises(DataError, match=r"a\.csv, row 3: column 'FPOGS' holds 'soon', expected a number"):
        egd_gaze(write(tmp_path / "a.csv", GAZE, f"{IMAGE},0,0,0,1,1,1,1,1", f"{IMAGE},0,0,soon,1,1,1,1,1"))
    assert egd_gaze(write(tmp_path / "a.csv", GAZE)) == ({}, {})
    assert egd_gaze(write(tmp_path / "a.csv", GAZE, f"{IMAGE},0,0,0,1,1,0,1,1")) == ({}, {gaze_files.INVALID: 1})


def test_screen_and_image_tell_the_size(tmp_path: Path) -> None:
    # 2544 x 3056 pixels fill 852 x 1024 of the screen.
    pads, generator = (28, 28, 534, 534), np.random.default_rng(0)
    share = generator.uniform(0.05, 0.95, (20, 2))
    screen = share * [852, 1024] + [534, 28]
    x, y = np.floor(share * [2544, 3056]).T
    gaze = gaze_files.ScreenGaze(x, y, x, x, *screen.T)
    width, height = gaze.image_size(pads)
    assert abs(width - 2544) < 10 and abs(height - 3056) < 10
    few = gaze_files.ScreenGaze(*(column[:2] for column in gaze))
    assert few.image_size(pads) is None and gaze.image_size((28, 28, 1000, 1000)) is None


def test_phrases_become_sentences(tmp_path: Path) -> None:
    def transcript(**content: object) -> Path:
        (tmp_path / "transcript.json").write_text(json.dumps(content))
        return tmp_path / "transcript.json"

    phrases = [("The heart is", 1.0, 2.0), ("normal.", 2.1, 2.5), ("No effusion.", 3.0, 4.0)]
    timed = [{"phrase": p, "begin_time": b, "end_time": e} for p, b, e in phrases]
    sentences, counts = egd_words(transcript(full_text="other", time_stamped_text=timed))
    assert sentences == [("The heart is normal.", 1.0, 2.5), ("No effusion.", 3.0, 4.0)] and counts == {}
    sentences, counts = egd_words(transcript(full_text="Clear lungs. No effusion.", time_stamped_text=[]))
    assert [s.text for s in sentences] == ["Clear lungs.", "No effusion."] and np.isnan(sentences[0].start)
    assert counts == {gaze_files.NO_TIMES: 1}
    untimed = [{"phrase": "Clear.", "begin_time": None, "end_time": ""}]
    sentences, counts = egd_words(transcript(time_stamped_text=untimed))
    assert np.isnan(sentences[0].end) and sum(counts.values()) == 1
    assert egd_words(transcript(full_text="", time_stamped_text=[]))[0] == []
    assert egd_words(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    "content", ["no json", "[1, 2]", '{"time_stamped_text": [{"begin_time": 1}]}', '{"time_stamped_text": [[1]]}']
)
def test_what_is_no_transcript_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "transcript.json").write_text(content)
    with pytest.raises(DataError, match=r"transcript\.json is no transcript .* expected JSON with full_text"):
        egd_words(tmp_path / "transcript.json")
    (tmp_path / "transcript.json").write_bytes(b'{"full_text": "\xff"}')
    with pytest.raises(DataError, match=r"transcript\.json: byte 15 is not UTF-8"):
        egd_words(tmp_path / "transcript.json")


def test_boxes_have_x_before_y(tmp_path: Path) -> None:
    file = write(
        tmp_path / "bounding_boxes.csv",
        ",dicom_id,bbox_name,x1,x2,y1,y2",
        f"0,{IMAGE},trachea,10,20,30,60",
        f"1,{IMAGE},heart,1,2,3,4",
        f"2,{OTHER},heart,,2,3,4",
    )
    assert egd_regions(file) == {IMAGE: [Box("trachea", 10, 30, 20, 60), Box("heart", 1, 3, 2, 4)]}
    assert egd_regions(tmp_path / "none.csv") == {}


# ------------------------------------------------------------------------------------------------------------- REFLACX
def test_marks_are_words_of_their_own(tmp_path: Path) -> None:
    header = "word,timestamp_start_word,timestamp_end_word"
    words = [
        "Heart,-0.1,0.4",
        "large,0.5,0.9",
        '",",0.9,0.9',
        "maybe,1.0,1.4",
        ".,1.4,1.4",
        "No,2,2.2",
        "edema,2.2,3",
        ".,,",
    ]
    write(tmp_path / "timestamps_transcription.csv", header, *words, end="\r\n")
    sentences, counts = reflacx_words(tmp_path)
    assert sentences == [("Heart large, maybe.", -0.1, 1.4), ("No edema.", 2.0, 3.0)] and counts == {}
    write(tmp_path / "timestamps_transcription.csv", header, "No,2,2.2", "Heart,0,0.4", "large,,", ".,,", "edema,2.2,3")
    sentences, counts = reflacx_words(tmp_path)
    assert sentences[0].text == "Heart large." and sum(counts.values()) >= 2  # sorted, and without a time
    write(tmp_path / "timestamps_transcription.csv", header, "Heart,soon,0.4")
    with pytest.raises(
        DataError, match=r"timestamps_transcription\.csv, row 2: column 'timestamp_start_word' holds 'soo"
    ):
        reflacx_words(tmp_path)


def test_text_stands_in_for_words(tmp_path: Path) -> None:
    assert reflacx_words(tmp_path) is None
    write(tmp_path / "transcription.txt", "Heart large. No edema.")
    sentences, counts = reflacx_words(tmp_path)
    assert [s.text for s in sentences] == ["Heart large.", "No edema."] and counts == {gaze_files.NO_TIMES: 1}
    (tmp_path / "transcription.txt").write_bytes(b"\xfe")
    with pytest.raises(DataError, match=r"transcription\.txt: byte 0 is not UTF-8"):
        reflacx_words(tmp_path)


def test_degrees_become_pixels(tmp_path: Path) -> None:
    header = [*gaze_files.REFLACX_COLUMNS, *gaze_files.RESOLUTION]
    file = write(tmp_path / "fixations.csv", ",".join(header), "-0.2,0.1,10,20,50,60", "0.2,0.4,-5,20,,0", end="\r\n")
    seen = reflacx_fixations(file, sigma_degrees=1.5, sigma_px=150)
    np.testing.assert_allclose(seen.sigma, [[75, 90], [150, 150]])
    np.testing.assert_allclose(
        np.array([seen.x, seen.y, seen.start, seen.end]).T, [[10, 20, -0.2, 0.1], [-5, 20, 0.2, 0.4]]
    )
    write(file, ",".join(header[:4]), "0,1,2,3")
    np.testing.assert_allclose(reflacx_fixations(file, 1.0, 99.0).sigma, [[99, 99]])
    with pytest.raises(DataError, match=r"lacks the columns \['y_position'\]"):
        reflacx_fixations(write(file, ",".join(header[:3]), "0,1,2"), 1.0, 1.0)


def test_ellipses_become_boxes_of_their_labels(tmp_path: Path) -> None:
    file = write(
        tmp_path / "anomaly_location_ellipses.csv",
        "xmin,ymin,xmax,ymax,certainty,Edema,Consolidation",
        "1,2,11,22,5,True,False",
        "30,40,20,10,3,True,True",
        "1,2,11,22,2,True,False",
        "1,2,11,22,5,False,False",
        end="\r\n",
    )
    sure = [Box("Edema", 1, 2, 11, 22)]
    maybe = [Box("Edema", 20, 10, 30, 40), Box("Consolidation", 20, 10, 30, 40)]
    assert reflacx_regions(file, 4) == sure and reflacx_regions(file, 3) == sure + maybe
    assert reflacx_regions(tmp_path / "none.csv", 3) == []
