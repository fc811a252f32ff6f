"""The story of a file: claim → read → extract → chunk → embed → commit → settle; sweep; drain."""
