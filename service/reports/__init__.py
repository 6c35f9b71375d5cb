"""Answers to people's questions, which join the tables of several rooms. Only roll-ups write."""
