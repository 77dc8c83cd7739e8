"""Writes the demo's held-out text: documents that training left out, in turn from speeches, whale and novels.

usage: heldout_text.py DOMAIN_DIR ../heldout.txt      (prepare_domains.py fills DOMAIN_DIR)
The separator is the one of training: one token, without a line break beside it.
"""
import sys

SEPARATOR = "<|endoftext|>"
DOCUMENTS = 9  # of each source

domains = [open(f"{sys.argv[1]}/{name}.heldout.txt", encoding="utf-8").read().split("\f")
           for name in ("speeches", "whale", "novels")]
with open(sys.argv[2], "w", encoding="utf-8", newline="") as out:
    for i in range(DOCUMENTS):
        for documents in domains:
            out.write(documents[i] + SEPARATOR)
