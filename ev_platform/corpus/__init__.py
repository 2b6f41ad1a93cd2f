"""From fetched bytes to passages: extract text, filter, remove duplicates, cut into chunks.

Every filter keeps a document or drops it with a named reason and the figure that tripped it; rows in always equal rows
out plus rows dropped. What does not belong here: fetching (`collect`) and questions (`dataset`).
"""

from ev_platform.corpus.chunk import chunk_documents
from ev_platform.corpus.clean import clean_documents
from ev_platform.corpus.extract import extract_documents
from ev_platform.corpus.report import summarise_corpus, write_corpus_report

__all__ = ["chunk_documents", "clean_documents", "extract_documents", "summarise_corpus", "write_corpus_report"]
