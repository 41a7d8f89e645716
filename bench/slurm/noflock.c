/* Preloaded: flock() of file systems that have none (FLOCK_ERROR=38 as Lustre, 37 as NFS without lockd), or that keep locks
   within one host (FLOCK_ERROR=0: everybody gets every lock, as two hosts would). */
#include <errno.h>
#include <stdlib.h>

int flock(int file, int operation)
{
    const char *number = getenv("FLOCK_ERROR");
    (void)file;
    (void)operation;
    errno = number ? atoi(number) : 0;
    return errno ? -1 : 0;
}
