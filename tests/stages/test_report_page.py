"""The report that the pipeline itself wrote, in a real browser."""

SECTIONS = ['results', 'differences', 'discrimination', 'subgroups', 'audit', 'ways', 'learning', 'search', 'patients',
            'cohort', 'config', 'versions', 'tripod']


def test_the_page_of_a_run_is_whole_and_its_tree_opens(chromium, finished):
  page = finished / 'report.html'
  tab = chromium.open(page)
  found = tab.evaluate('''[...document.querySelectorAll("main > section")].map(s => [
      s.querySelector("h2").id, s.querySelector("table, svg, dl, ul.tree, article") !== null,
      s.querySelector(".absent") === null])''')
  assert found == [[name, True, True] for name in SECTIONS]
  # A search this small has one path, which is open: the first click closes it.
  tab.evaluate('void (window.root = document.querySelector(".tree > li > details"))')
  inner = 'root.querySelector("li").checkVisibility()'
  assert tab.evaluate(f'[root.open, {inner}]') == [True, True]
  for shown in (False, True):
    tab.click('root.querySelector("summary")')
    assert tab.evaluate(f'[root.open, {inner}]') == [shown, shown]
  assert tab.errors() == [] and tab.requests() == [page.as_uri()]
