#include "fdstash_load.h"
#include "fdstash_nbd.h"
