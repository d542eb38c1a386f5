"""Which kind of machine made an artifact: two generations with one name are two kinds."""

from __future__ import annotations

import platform

from tasks.run_stage import cpu_kind

CLOUD = """processor	: 0
vendor_id	: AuthenticAMD
cpu family	: {family}
model		: 1
model name	: AMD EPYC
flags		: fpu sse2 {flags}

processor	: 1
cpu family	: 99
model name	: another
flags		: avx512f
"""


def test_generations_of_one_name_differ() -> None:
    milan, turin = CLOUD.format(family=25, flags="avx avx2"), CLOUD.format(family=26, flags="avx avx2 avx512f")
    assert cpu_kind(milan) == "AMD EPYC, family 25, model 1, avx2"
    assert cpu_kind(turin) == "AMD EPYC, family 26, model 1, avx512f"


def test_what_is_not_told_is_left_out() -> None:
    assert cpu_kind("model name : Small\n") == "Small"
    assert cpu_kind("CPU implementer : 0x41\n") == (platform.processor() or platform.machine())
    assert cpu_kind()
