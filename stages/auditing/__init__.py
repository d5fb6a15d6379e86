"""The parts of the technique audit: measurements on what ships, and the findings made of them and of the
records.
"""
