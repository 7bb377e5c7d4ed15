import platform

import pytest
import torch

from xycodec.errors import ConfigError
from xycodec.nn.deterministic import kernels
from xycodec.nn.deterministic.kernels import SETTING, TABLE, multiply, processor, uses_onednn

needs_onednn = pytest.mark.skipif(not kernels.has_onednn(), reason="this torch has no oneDNN product")


@pytest.fixture
def anew(monkeypatch):
    """Forget which processor this is, before and after."""
    monkeypatch.delenv(SETTING, raising=False)
    monkeypatch.delenv("MKL_CBWR", raising=False)
    processor.cache_clear()
    yield monkeypatch
    processor.cache_clear()


@pytest.mark.parametrize("row", TABLE)
@needs_onednn
def test_a_setting_chooses(anew, row):
    anew.setenv(SETTING, row)
    assert [uses_onednn(part) for part in TABLE[row]] == [library == "onednn" for library in TABLE[row].values()]


def test_a_setting_that_names_nothing_is_told(anew):
    anew.setenv(SETTING, "pentium")
    with pytest.raises(ConfigError, match=f"{SETTING}=pentium: no such processor: choose one of {', '.join(TABLE)}"):
        processor()


@pytest.mark.parametrize(
    ("about", "capability", "row"),
    [
        ("vendor_id : GenuineIntel", "AVX512", "intel-avx512"),
        ("vendor_id : GenuineIntel", "AVX2", "other"),
        ("vendor_id : AuthenticAMD", "AVX512", "other"),
        ("vendor_id : AuthenticAMD", "AVX2", "amd-avx2"),
        ("CPU implementer : 0x41", "AVX2", "other"),
    ],
)
def test_the_processor_decides(anew, tmp_path, about, capability, row):
    (tmp_path / "cpuinfo").write_text(about)
    anew.setattr(kernels, "Path", lambda _: tmp_path / "cpuinfo")
    anew.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert processor() == row


def test_mkl_that_runs_the_code_of_another_processor_is_not_trusted(anew):
    anew.setattr(kernels, "maker", lambda: "intel")
    anew.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert processor() == "intel-avx512"
    processor.cache_clear()
    anew.setenv("MKL_CBWR", "AVX2")
    assert processor() == "other"


def test_another_processor_than_x86_has_torchs_own(anew):
    anew.setattr(platform, "machine", lambda: "aarch64")
    kernels.has_onednn.cache_clear()
    try:
        assert not uses_onednn("linear")
    finally:
        kernels.has_onednn.cache_clear()


@pytest.mark.exact
@needs_onednn
@pytest.mark.parametrize("rows", [1, 2, 3, 31, 64])
@pytest.mark.parametrize(("terms", "columns"), [(7, 40), (384, 1536), (1536, 384), (100, 1)])
def test_a_row_is_the_same_among_any_others_by_any_threads(threads, rows, terms, columns):
    x, weight, onto = torch.randn(70, terms), torch.randn(columns, terms), torch.randn(70, columns)
    expected = multiply(x, weight, onto=onto)[3 : 3 + rows]
    for count in (1, 2, 5, 16):
        threads(count)
        assert torch.equal(multiply(x[3 : 3 + rows], weight, onto=onto[3 : 3 + rows]), expected)


@needs_onednn
@pytest.mark.parametrize("weight", [torch.randn(9, 24)[:, 5:17], torch.randn(24, 9)[5:17].t(), torch.randn(12, 9).t()])
def test_weights_with_gaps_between_rows(weight):
    x, bias = torch.randn(20, 24)[:, :12], torch.randn(9)
    torch.testing.assert_close(multiply(x, weight, bias), x @ weight.t() + bias, atol=1e-5, rtol=0)
