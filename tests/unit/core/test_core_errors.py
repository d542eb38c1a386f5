"""The one error type."""

from __future__ import annotations

import pickle

import pytest

from inverse_alignment.core.errors import UserError, nearest


def test_it_says_what_where_and_how_to_fix_it():
    error = UserError("unknown key", where="ppo.stepz", fix="did you mean 'steps'?")
    assert str(error) == "unknown key\n  where: ppo.stepz\n  fix:   did you mean 'steps'?"


def test_three_lines_stay_three_whatever_a_library_says():
    error = UserError("cannot load:\n\n  no such key", where="a\u2028b.jsonl", fix="one\r\ntwo  three\n")
    assert (error.what, error.where, error.fix) == ("cannot load: no such key", "a b.jsonl", "one two  three")
    assert len(str(error).splitlines()) == 3


def test_it_survives_a_process_boundary():
    error = UserError("a", where="b", fix="c")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is UserError
    assert (back.what, back.where, back.fix, str(back)) == ("a", "b", "c", str(error))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("stepz", "did you mean 'steps'?"),
        ("batchsize", "did you mean 'batch_size'?"),
        ("zzz", "valid names: batch_size, clip, steps"),
        ("", "valid names: batch_size, clip, steps"),
    ],
)
def test_the_nearest_name(name, said):
    assert nearest(name, ["steps", "clip", "batch_size"]) == said
