#include "fdstash_load.h"
