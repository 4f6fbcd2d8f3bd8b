"""The report on one run: a document (`models.report`), and the page that is drawn from it.

`compose` makes the document from what was judged; `story` and `evidence` put it into tables and words; `page` lays them
out as one HTML file that a reader can keep, print and send; it fetches nothing and runs nothing.
"""
