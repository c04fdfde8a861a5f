from . import program


program()
