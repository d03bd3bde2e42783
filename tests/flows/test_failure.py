from flows.stage.failure import MAX_CHARACTERS, reason

DVC = "ERROR: failed to reproduce 'train@row': failed to run: python stages/train.py row, exited with 1"


def test_the_sentence_of_the_stage_is_the_reason():
    lines = ["Running stage 'train@row':", "> python stages/train.py row", "train: error: params.yaml:",
             "  optim.lr is -1; it must be above 0", "  seed is x; write a whole number", DVC]  # fmt: skip
    assert reason(lines, 255) == "\n".join(lines[2:5])


def test_a_stage_that_ends_without_a_sentence_has_its_last_lines_as_the_reason():
    lines = ["Running stage 'train@row':", "> python train.py", "Killed"]
    assert reason([*lines, DVC], 255) == "Killed"
    lines = [f"line {number}" for number in range(20)]
    assert reason([*lines, DVC], 255) == "\n".join(lines[-8:])


def test_lines_of_progress_are_no_reason():
    lines = ["curl: (28) timed out", "download: 3,100 of 43,600 MB, 2 h 10 min left", "", DVC]
    assert reason(lines, 255) == "curl: (28) timed out"


def test_dvc_is_the_last_to_ask():
    assert reason([DVC], 255) == DVC
    assert reason([], 255) == "dvc ended with status 255 and said nothing"


def test_a_reason_is_short():
    shown = reason(["train: error: begin " + "x" * 10 * MAX_CHARACTERS + " end"], 1)
    assert len(shown) < MAX_CHARACTERS + 10
    assert shown.startswith("train: error: begin") and shown.endswith(" end")
