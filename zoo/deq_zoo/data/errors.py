"""What loaders raise when files are not what they should be."""


class DatasetError(ValueError):
    """The files of a dataset are missing, damaged, or in another format."""
