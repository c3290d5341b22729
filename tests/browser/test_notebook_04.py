"""The shipped notebook on routers in a real JupyterLab: a token shows its experts, and a muted expert is missed."""

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1500)]

NOTE = "note: a 64 year old man. known irritable bowel syndrome. new alteplase. mark all entities with their type."


def test_a_token_shows_its_experts_and_a_muted_one_changes_the_answer(driver, tmp_path) -> None:
    page = driver.page
    page.set_default_timeout(900_000)
    driver.open_shipped("04_router_inspection.ipynb")
    driver.run_all()
    inspector = page.locator(".wb-view", has=page.get_by_role("button", name="Ask"))
    inspector.first.scroll_into_view_if_needed()
    token = inspector.locator(".wb-router-token").nth(3)
    token.click()
    strip = inspector.locator(".wb-router-strip")
    strip.locator("caption", has_text="Token 4 of").wait_for()
    rows = strip.locator("tbody tr")
    assert rows.count() == inspector.get_by_role("slider", name="Router").evaluate("(s) => Number(s.max) + 1") > 1
    for row in range(rows.count()):
        cells = rows.nth(row).locator("td").all_inner_texts()
        assert len(cells) == 4
        assert sum("●" in cell for cell in cells) == 2
        assert sum(int(cell.split()[-1]) for cell in cells) == pytest.approx(100, abs=2)
    # The shipped question is answered alike without any one expert; this one needs them.
    prompt = inspector.get_by_role("textbox", name="Prompt")
    prompt.fill(NOTE)
    prompt.blur()
    changed = {}
    for expert in range(4):
        inspector.get_by_role("combobox", name="Expert").select_option(str(expert))
        inspector.get_by_role("button", name="Ask").click()
        inspector.locator(".wb-pane header", has_text=f"mute expert {expert} in all layers").wait_for()
        plain, muted = inspector.locator(".wb-pane .wb-answer").all_inner_texts()
        changed[expert] = plain != muted
        said = inspector.locator(".wb-status").inner_text()
        assert said == ("The answer changes." if changed[expert] else "The answer stays the same.")
        where = inspector.get_by_role("combobox", name="Where")
        said = where.evaluate("(field) => field.selectedOptions[0]?.textContent")
        assert said.replace("\xa0", " ") == "all layers"
    driver.picture(inspector, tmp_path / "inspector.png")
    assert any(changed.values())
    driver.quiet()
