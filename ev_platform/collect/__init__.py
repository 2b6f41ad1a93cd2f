"""Collect: the first stage, from a task's `sources.yaml` to the bytes of pages and PDFs.

Three functions make the stage's three tables, one row an address, good or bad:

- `collect_pages` (`raw_pages`) crawls from the seeds over HTTP and holds everything it met, HTML and linked PDFs.
- `collect_pdfs` (`raw_pdfs`) reads the PDF files that the globs match and those in the task's drop folder.
- `collect_texts` (`raw_texts`) reads the text files that the globs match, and the rows of `unstructured.csv`.

Bodies lie as blobs in the store. The functions take the previous table, so that what did not change is not
transferred again and keeps the hour it came from.

What does not belong here: what the bytes say (`corpus`), which includes licences that pages declare themselves.
"""

from ev_platform.collect.crawl import collect_pages
from ev_platform.collect.files import collect_pdfs, collect_texts, inbox_state

__all__ = ["collect_pages", "collect_pdfs", "collect_texts", "inbox_state"]
