"""Parts of the stage `audit`: measurements on the packaged model, and findings from them and from the
records.
"""
