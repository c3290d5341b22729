"""The shipped notebook on curricula in a real JupyterLab: a border moves by keyboard, and the matrix fills."""

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1500)]

NUMBERS = """least => [...document.querySelectorAll('.wb-view h4')].some((head) =>
  head.textContent.startsWith('What each stage taught') &&
  [...head.nextElementSibling.querySelectorAll('text')].filter((t) => /^\\d\\.\\d\\d$/.test(t.textContent)).length
    >= least)"""
TASKS, COLUMNS = 8, 4


HEADS = """() => {
  const heads = [...document.querySelectorAll('.wb-view h4')].map((head) => head.textContent.trim());
  const stages = heads.filter((text) => /^\\S+: \\d+ examples$/.test(text));
  return stages.length >= 3 ? stages.slice(0, 3) : null }"""


def sizes(page) -> list[str]:
    """The headings of the stages below the histogram, such as `easy: 146 examples`."""
    return page.wait_for_function(HEADS).json_value()


def examples(head: str) -> int:
    return int(head.split()[1])


def test_a_border_moves_by_keyboard_and_the_matrix_fills(driver, tmp_path) -> None:
    page = driver.page
    page.set_default_timeout(900_000)
    driver.open_shipped("02_curriculum.ipynb")
    driver.start_all()
    page.wait_for_function(NUMBERS, arg=2 * TASKS)  # the first stage is over, the training goes on
    assert page.get_by_role("button", name="Stop").first.is_enabled()
    driver.run_all()
    page.wait_for_function(NUMBERS, arg=COLUMNS * TASKS)
    border = page.get_by_role("slider", name="Border between stage 1 and stage 2")
    border.scroll_into_view_if_needed()
    before, value = sizes(page), float(border.get_attribute("aria-valuenow"))
    assert [head.split(":")[0] for head in before] == ["easy", "middle", "hard"]
    border.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "before => ![...document.querySelectorAll('.wb-view h4')].some((head) => head.textContent === before)",
        arg=before[0],
    )
    after = sizes(page)
    assert float(border.get_attribute("aria-valuenow")) > value
    assert examples(after[0]) > examples(before[0])
    assert after[2] == before[2], "the second border stayed"
    driver.picture(page.locator(".wb-view", has=border), tmp_path / "borders.png")
    driver.picture(page.locator(".wb-view", has_text="What each stage taught").last, tmp_path / "curriculum.png")
    driver.quiet()
