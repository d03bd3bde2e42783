"""What is left when a process is killed."""

from actionzoo.process import mend_dvc


def test_a_list_of_files_in_use_that_was_cut_off_is_put_aside(tmp_path):
    path = tmp_path / ".dvc/tmp/rwlock"
    mend_dvc(tmp_path)  # there is none
    path.parent.mkdir(parents=True)
    path.write_text('{"data/a": {"write": {"pid": 1}}}')
    mend_dvc(tmp_path)
    assert path.is_file()
    for cut_off in ("", '{"data/a": {"wri'):
        path.write_text(cut_off)
        mend_dvc(tmp_path)
        assert not path.exists() and path.with_name("rwlock.damaged").read_text() == cut_off
