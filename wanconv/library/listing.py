"""Lists the choices: layouts, recipes, formats."""


def list_layouts() -> tuple[str, ...]:
    """Return the names of the layouts, one for each client.

    Returns:
        The names that `plan` takes as `layout`.

    Raises:
        PluginError: If an installed plugin cannot be loaded, or adds a name that is taken.

    Examples:
        >>> import wanconv as wc
        >>> "diffusers" in wc.list_layouts()
        True
    """
    from wanconv.layouts import LAYOUTS

    return tuple(LAYOUTS)


def list_recipes() -> tuple[str, ...]:
    """Return the names of the recipes that ship with wanconv, sorted.

    Returns:
        The names that `plan` takes as `recipe`.

    Examples:
        >>> import wanconv as wc
        >>> "bf16" in wc.list_recipes()
        True
    """
    from wanconv.recipe import names

    return names()


def list_formats() -> tuple[str, ...]:
    """Return the names of the formats that a rule of a recipe may name.

    Returns:
        The names that `Rule` takes as `format`.

    Examples:
        >>> import wanconv as wc
        >>> "bf16" in wc.list_formats()
        True
    """
    from wanconv.quantization import FORMATS

    return tuple(FORMATS)
