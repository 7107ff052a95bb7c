"""Talks to people: one file for each verb, its flags and its screens. What a verb does is done elsewhere."""
