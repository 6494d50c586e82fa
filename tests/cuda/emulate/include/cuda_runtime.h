// Nothing: emulate.h, which g++ reads first, has the words of the language.
#pragma once
