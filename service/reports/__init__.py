"""Answers to people's questions, which join the tables of several rooms. Reports only read."""
