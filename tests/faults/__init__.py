"""Faults at random under load, and the doctor's verdict afterwards: `python -m tests.faults`."""
