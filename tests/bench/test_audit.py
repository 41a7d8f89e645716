"""The locked packages have none of the holes on our list, and the list can find one."""

import pytest

from bench.quality.audit import Advisory, allowed_from, audit, locked, main, read_advisories
from sandbox import ROOT

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def test_neither_the_lock_nor_the_oldest_allowed_release_has_a_known_hole(capsys):
    assert main() == 0
    assert "0 open" in capsys.readouterr().out


def test_every_entry_is_about_an_installed_package_and_says_where_it_is_from():
    advisories = read_advisories()
    assert {advisory.package for advisory in advisories} <= set(locked(LOCK))
    assert all(advisory.source.startswith("https://") for advisory in advisories)
    assert len({advisory.id for advisory in advisories}) == len(advisories)


@pytest.mark.parametrize("advisory", [a for a in read_advisories() if a.fixed], ids=lambda a: a.id)
def test_the_release_before_the_mended_one_is_found(advisory):
    *front, last = map(int, advisory.fixed.split("."))
    # 2.6.0 is preceded by 2.5.99, and 14.0.1 by 14.0.0.
    older = [*front, last - 1] if last else [*front[:-1], front[-1] - 1, 99]
    version = ".".join(map(str, older))
    text = f"# a comment\n{advisory.package}=={version} ; sys_platform == 'linux'\n"
    (line,) = [one for one in audit([advisory], locked(text), "the lock") if advisory.id in one]
    assert version in line
    assert f"take {advisory.fixed} or later" in line
    assert audit([advisory], locked(f"{advisory.package}=={advisory.fixed}"), "the lock") == []
    wide = allowed_from([f"{advisory.package}>={version},<999"])
    assert len(audit([advisory], wide, "pyproject.toml")) == 1


def test_an_entry_that_can_neither_be_met_nor_is_accepted_is_refused(tmp_path):
    file = tmp_path / "list.toml"
    file.write_text('[[advisory]]\npackage = "a"\nid = "B"\nwhat = "c"\nsource = "d"\n')
    with pytest.raises(ValueError, match=r"list\.toml: B needs either"):
        read_advisories(file)
    assert Advisory("a", "B", "c", "d", fixed="1.10").complaint("1.9", "x") is not None
