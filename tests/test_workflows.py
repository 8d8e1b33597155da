"""The workflows run what they say, by commits that nobody can move, with no more rights than each job needs."""

import re

import pytest
import yaml

from tools.address import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAY = {  # (workflow, job) → what it may write
    ("publish", "deploy"): {"pages", "id-token"},
    ("weekly", "report"): {"issues"},
}
every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def faults(text, name):
    """Say what is wrong with a workflow."""
    workflow, found = yaml.safe_load(text), []
    for line in re.findall(r"uses: *(.*)", text):
        if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line):
            found.append(f"{line} is not pinned by a commit, with its version in a comment")
    for job, said in workflow["jobs"].items():
        rights = said.get("permissions", workflow.get("permissions"))
        if not isinstance(rights, dict):
            found.append(f"{job} does not say what it may do")
            continue
        writes = {right for right, level in rights.items() if level != "read"}
        if writes != MAY.get((name, job), set()):
            found.append(f"{job} may write {sorted(writes)}")
        if "timeout-minutes" not in said:
            found.append(f"{job} may run for six hours")
    return found


@every_workflow
def test_actions_are_pinned_and_jobs_have_no_more_rights_than_they_need(path):
    assert faults(path.read_text(encoding="utf-8"), path.stem) == []


@pytest.mark.parametrize(
    "change",
    [
        (r"@[0-9a-f]{40} # v[\d.]+", "@v4"),
        (r"contents: read", "contents: write"),
        (r"permissions:\n      issues: write", "permissions: write-all"),
        (r"    timeout-minutes: 20\n", ""),
    ],
)
def test_that_check_finds_a_tag_a_right_too_many_and_a_job_without_an_end(change):
    text = (ROOT / ".github" / "workflows" / "weekly.yml").read_text(encoding="utf-8")
    changed = re.sub(*change, text)
    assert changed != text and faults(changed, "weekly")


@every_workflow
def test_every_make_target_and_module_that_a_workflow_runs_exists(path):
    text = path.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([\w-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


def test_nothing_is_published_that_is_not_whole():
    steps = yaml.safe_load((ROOT / ".github/workflows/publish.yml").read_text(encoding="utf-8"))["jobs"]["build"]["steps"]
    runs = [step.get("run", step.get("uses", "")) for step in steps]
    guard = next(index for index, run in enumerate(runs) if "tools.site _build/html" in run)
    assert "upload-pages-artifact" in runs[guard + 1] and any("check-book" in run for run in runs[:guard])


def test_only_the_job_that_opens_an_issue_may_and_it_waits_for_all_others():
    jobs = yaml.safe_load((ROOT / ".github/workflows/weekly.yml").read_text(encoding="utf-8"))["jobs"]
    assert set(jobs["report"]["needs"]) == jobs.keys() - {"report"} and jobs["report"]["if"] == "failure()"
    assert "gh issue create" in jobs["report"]["steps"][0]["run"]
